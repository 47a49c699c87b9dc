"""A tiny recipe under fire: `killer.py WHAT FOLDER COUNT SEED` trains it undisturbed once, then disturbed.

    kill     `kill -9` at random instants, again and again, until the run ends
    signal   SIGTERM and SIGINT at random instants, some in a long evaluation, some while a slow disk is written to
    damage   a checkpoint damaged in a random way, the run resumed
    full     the disk full for a while, at random instants
    power    the power cut at a random moment: what was not fsynced is gone
    faults   each bug of `faults.py` (or those named behind) planted into the disturbed runs, which must find it

Runs are forked from one process that has torch loaded and a single thread, so that a disturbance costs a fraction of
a second. The recipe has all that a checkpoint must carry: dropout, shuffled epochs, accumulation, Muon and AdamW, EMA,
early stopping, evaluations and metrics.jsonl. Prints one JSON line: how many tries, and what was wrong with which.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.toys import Next, build

from modelworks.base import files
from modelworks.base.errors import ModelworksError
from modelworks.train import checkpoint, saving
from modelworks.train.hooks import Hook
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=24, accumulate=2, ema=0.9, evaluate_every=7, patience=4, save_every=0, log_every=5, dtype="auto", track=[]
)
SAME = {
    "batches",
    "norm",
    "step",
    "loss",
    "right",
    "gradient_norm",
    "learning_rate",
    "tokens",
    "steps",
    "skipped",
    "best_step",
}
SAME |= {"validation_loss", "validation_right"}  # what must come out the same; the rest is time, memory and energy
NOTES = Path()  # where runs leave what they said and what came out
PATIENCE = 30.0  # seconds after which a run counts as hung
SHARED = mmap.mmap(-1, 16)
"""A byte each that the child writes and the parent reads: step, evaluating, in the loop, resumed at."""

Plant = Callable[[], None]


def nothing() -> None:
    """No bug at all."""


class Tell(Hook):
    """Tells the parent which step is done."""

    def begin(self, run: Run) -> None:
        SHARED[0] = SHARED[3] = run.step
        SHARED[2] = 1

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        SHARED[0] = run.step


class Slow(Next):
    """Evaluates so slowly that only breaking it off helps."""

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        SHARED[1] = 1
        time.sleep(20)
        return super().evaluate(model)


def recipe(folder: Path, objective: Any = None, **settings: Any) -> None:
    """Train in `folder` and write what came out: a hash of the final weights and of every logged number but times."""

    def log(text: str) -> None:
        note(folder, text)

    model = build(dropout=0.2)
    run = start(model, objective or Next(), SETTINGS.model_copy(update=settings), folder, log=log)
    run.hooks.insert(0, Tell())
    metrics = train(run)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    for file in ("metrics.jsonl", "steps.jsonl"):
        for line in map(json.loads, (folder / file).read_text().splitlines()):
            if "step" in line:
                digest.update(json.dumps({k: v for k, v in line.items() if k in SAME}).encode())
    digest.update(json.dumps({k: v for k, v in metrics.items() if k in SAME}).encode())
    (NOTES / f"{folder.name}.result").write_text(digest.hexdigest())


def note(folder: Path, text: str) -> None:
    """A line of what the runs in this folder say."""
    with open(NOTES / f"{folder.name}.said", "a") as file:
        file.write(f"{text}\n")


def result(folder: Path) -> str:
    """What came out, or nothing yet."""
    path = NOTES / f"{folder.name}.result"
    return path.read_text() if path.exists() else ""


def said(folder: Path) -> str:
    """All that the runs in this folder said."""
    path = NOTES / f"{folder.name}.said"
    return path.read_text() if path.exists() else ""


def forked(folder: Path, plant: Plant = nothing, beside: bool = True, objective: Any = None, **settings: Any) -> int:
    """Start the recipe in a child; returns its process id. `beside`: saves are written by the thread."""
    threads = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Threads"))
    assert threads.split()[1] == "1", f"a process with {threads.split()[1]} threads must not fork"
    SHARED[:] = bytes(len(SHARED))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            saving.IN_LINE = 0.0 if beside else 1e9
            saving.NOTICE = 0.0
            plant()
            recipe(folder, objective, **settings)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        except ModelworksError as error:
            note(folder, f"ERROR {error}")
        except BaseException as error:
            note(folder, f"BUG {type(error).__name__}: {error}")
        finally:
            os._exit(status)
    return child


def ended(child: int, seconds: float = PATIENCE) -> int:
    """The exit status (negative for a signal); a child that hangs is killed and gives -99."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -99


def newest(folder: Path) -> int:
    """Step of the newest checkpoint whose hashes fit, -1 without one."""
    for path in checkpoint.found(folder):
        try:
            files.verify(path)
            return int(path.name.split("-")[1])
        except ModelworksError:
            continue
    return -1


class Trial:
    """A kind of disturbance, tried `count` times from a seed; stops at the first thing wrong when a fault is planted."""

    def __init__(self, folder: Path, count: int, seed: int, plant: Plant = nothing) -> None:
        self.folder, self.count, self.plant = folder, count, plant
        self.dice = random.Random(seed)
        self.tries = self.runs = 0
        self.wrong: list[str] = []
        self.facts: dict[str, Any] = {}
        self.quick = plant is not nothing
        global NOTES
        NOTES = folder / "notes"
        NOTES.mkdir(parents=True)
        torch.set_num_threads(1)
        recipe(folder / "warm")  # what torch loads on first use is then there for every child
        began = time.monotonic()
        assert ended(forked(folder / "calm")) == 0, said(folder / "calm")
        self.whole = time.monotonic() - began
        self.calm = result(folder / "calm")

    @property
    def over(self) -> bool:
        return self.tries >= self.count or (self.quick and bool(self.wrong))

    def place(self) -> Path:
        """A folder for the next run."""
        self.runs += 1
        return self.folder / f"run-{self.runs}"

    def blame(self, place: Path, what: str) -> None:
        """Note that something was wrong with a run."""
        self.wrong.append(f"{place.name}: {what}; it said: {said(place)[-300:]!r}")

    def judge(self, place: Path, leftovers: bool = True) -> None:
        """A run has ended: it must be the undisturbed one, and leave no litter."""
        if result(place) != self.calm:
            self.blame(place, "ended otherwise than the undisturbed run")
        if newest(place) != newest(self.folder / "calm"):
            self.blame(place, f"ended, and its newest checkpoint is of step {newest(place)}")
        litter = [path.name for path in (place / "checkpoints").iterdir() if path.name.endswith(files.PARTIAL)]
        if litter or len(checkpoint.found(place)) > checkpoint.KEEP:
            self.blame(place, f"left {litter or 'more checkpoints than are kept'}")

    def report(self) -> dict[str, Any]:
        wrong = {text.split(":")[0] for text in self.wrong}
        facts = {"tries": self.tries, "runs": self.runs, "lost": len(wrong), "wrong": self.wrong[:5]}
        return facts | {"whole_run_seconds": round(self.whole, 3)} | self.facts


def slower(plant: Plant, seconds: float) -> Plant:
    """On a disk that takes its time."""

    def both() -> None:
        fsync = os.fsync
        os.fsync = lambda handle: (time.sleep(seconds), fsync(handle))[1]
        plant()

    return both


def kill(trial: Trial) -> None:
    """Each run is killed about every half of its length until it ends; progress that was on disk stays.

    Half of them write to a slow disk, so that many kills fall into a save.
    """
    inside = beside_count = 0
    while not trial.over:
        place = trial.place()
        reached, attempts = -1, 0
        while not result(place) and not (trial.quick and trial.wrong):
            attempts += 1
            beside = trial.dice.random() < 0.7
            plant = slower(trial.plant, 0.004) if trial.dice.random() < 0.5 else trial.plant
            child = forked(place, plant, beside, save_every=trial.dice.choice([0, 0, 0.03]))
            if trial.tries < trial.count:
                time.sleep(trial.dice.uniform(0, 0.7 * trial.whole))
                if os.waitpid(child, os.WNOHANG)[0]:
                    if not result(place):
                        trial.blame(place, "ended by itself without a result")
                        break
                    continue
                os.kill(child, signal.SIGKILL)
                if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
                    continue  # it had ended between the look and the signal: nobody was killed
                trial.tries += 1
                inside += any((place / "checkpoints").glob(f".*{files.PARTIAL}"))
                beside_count += beside
                now = newest(place)
                if now < reached:
                    trial.blame(place, f"went back from step {reached} to {now}")
                reached = max(now, reached)
            else:
                status = ended(child)
                if status:
                    trial.blame(place, f"ended with status {status} undisturbed")
                    break
            if attempts > 200:
                trial.blame(place, "does not get on")
                break
        else:
            if result(place):
                trial.judge(place)
    trial.facts = {"inside_a_save": inside, "saved_beside": beside_count}


def signals(trial: Trial) -> None:
    """Each run is told to stop and taken up again until it ends; a stop in the loop saves the step it was in."""
    delays: list[float] = []
    where = {"before the loop": 0, "in an evaluation": 0, "in a save": 0, "in a step": 0}
    while not trial.over:
        place = trial.place()
        attempts = 0
        while not result(place) and attempts < 200 and not (trial.quick and trial.wrong):
            attempts += 1
            last = trial.tries >= trial.count
            slow = not last and trial.dice.random() < 0.3
            lazy = not last and not slow and trial.dice.random() < 0.5

            number = trial.dice.choice([signal.SIGTERM, signal.SIGINT])
            plant = slower(trial.plant, 0.03) if lazy else trial.plant
            child = forked(place, plant, beside=trial.dice.random() < 0.7, objective=Slow() if slow else None)
            if last:
                if status := ended(child):
                    trial.blame(place, f"ended with status {status} undisturbed")
                break
            time.sleep(trial.dice.uniform(0.1, 1.0 if slow else 0.8) * trial.whole)
            looping, evaluating, step = SHARED[2], SHARED[1], SHARED[0]
            saving_now = any((place / "checkpoints").glob(f".*{files.PARTIAL}"))
            sent = time.monotonic()
            if os.waitpid(child, os.WNOHANG)[0]:
                continue
            os.kill(child, number)
            status = ended(child, 15)
            delays.append(time.monotonic() - sent)
            if status == 0:
                continue  # it was at its end
            trial.tries += 1
            kind = "in an evaluation" if evaluating else "in a save" if saving_now else "in a step"
            where[kind if looping else "before the loop"] += 1
            if status == 0 or (not looping and status in (-number, 1, 128 + number)):
                continue
            if status != 128 + number:
                trial.blame(place, f"status {status} after signal {number}")
            elif newest(place) < step:
                trial.blame(place, f"step {step} was done and step {newest(place)} is saved")
        if result(place):
            trial.judge(place)
        elif not trial.wrong:
            trial.blame(place, "does not get on")
    delays.sort()
    if delays and delays[-1] > 10:
        trial.wrong.append(f"run-?: {delays[-1]:.1f} s from the signal to the end")
    middle = delays[len(delays) // 2] if delays else 0.0
    trial.facts = {"slowest": round(max(delays, default=0.0), 3), "median": round(middle, 3), "where": where}


def disturb(what: str, folder: Path, count: int, seed: int, plant: Plant = nothing) -> dict[str, Any]:
    """One kind of disturbance, `count` times."""
    from train import ruin

    folder.mkdir(parents=True, exist_ok=True)
    trial = Trial(folder, count, seed, plant)
    {"kill": kill, "signal": signals, "damage": ruin.damage, "full": ruin.full, "power": ruin.power}[what](trial)
    return trial.report()


def planted(folder: Path, seed: int, names: list[str]) -> dict[str, Any]:
    """Each fault alone, until its trial finds it; and the same trials without a fault, which must find nothing."""
    from train import faults

    out: dict[str, Any] = {"caught": 0, "missed": [], "faults": {}}
    for name in names or list(faults.FAULTS):
        fault = faults.FAULTS[name]
        place = folder / name.replace(" ", "-")
        report = disturb(fault.trial, place, faults.TRIES[fault.trial], seed, fault.plant)
        shutil.rmtree(place)
        out["faults"][name] = {"trial": fault.trial, "tries": report["tries"], "wrong": report["wrong"][:1]}
        out["caught"] += bool(report["wrong"])
        out["missed"] += [] if report["wrong"] else [name]
    return out


if __name__ == "__main__":
    sys.modules["train.killer"] = sys.modules["__main__"]
    what, folder, count, seed, *rest = sys.argv[1:]
    if what == "faults":
        print(json.dumps(planted(Path(folder), int(seed), rest)))
    else:
        print(json.dumps(disturb(what, Path(folder), int(count), int(seed))))
