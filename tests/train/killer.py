"""A tiny recipe under fire: `killer.py FOLDER KILLS SEED SIGNAL` trains it undisturbed once, then again and again killed.

Forks its runs from one process that has torch loaded, so that a kill costs a fraction of a second. The recipe has
all that a checkpoint must carry: dropout, shuffled epochs, accumulation, Muon and AdamW, EMA, early stopping,
evaluations and metrics.jsonl; it saves after every step, so most kills fall into a save. Prints one JSON line.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

from train.toys import Next, build, silent

from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

SETTINGS = TrainSettings(
    steps=24, accumulate=2, ema=0.9, evaluate_every=7, patience=4, save_every=0, log_every=5, dtype="auto", track=[]
)
TIMES = {"seconds", "seconds_left", "tokens_per_second", "share_of_peak", "memory", "memory_peak", "energy_wh"}


def recipe(folder: Path) -> None:
    """Train in `folder` and write what came out: a hash of the final weights and of every logged number but times."""
    model = build(dropout=0.2)
    run = start(model, Next(), SETTINGS, folder, log=silent)
    metrics = train(run)
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        digest.update(json.dumps({k: v for k, v in json.loads(line).items() if k not in TIMES}).encode())
    digest.update(json.dumps({k: v for k, v in metrics.items() if k not in TIMES}).encode())
    (folder / "result").write_text(digest.hexdigest())


def forked(folder: Path) -> int:
    """Start the recipe in a child; returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            recipe(folder)
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        finally:
            os._exit(status)
    return child


def main(folder: Path, kills: int, seed: int, number: int) -> dict[str, object]:
    dice = random.Random(seed)
    recipe(folder / "warm")  # what torch loads on first use is then there for every child
    began = time.monotonic()
    os.waitpid(forked(folder / "calm"), 0)
    whole = time.monotonic() - began
    calm = (folder / "calm" / "result").read_text()
    out: dict[str, object] = {"kills": 0, "runs": 0, "identical": 0, "in_a_save": 0, "statuses": [], "slowest": 0.0}
    while out["kills"] < kills:
        place = folder / f"run-{out['runs']}"
        out["runs"] += 1
        while not (place / "result").exists():
            child = forked(place)
            if out["kills"] < kills:
                time.sleep(dice.uniform(0, 0.7 * whole))
                if os.waitpid(child, os.WNOHANG)[0] == 0:
                    os.kill(child, number)
                    sent = time.monotonic()
                    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                    out["slowest"] = max(out["slowest"], time.monotonic() - sent)
                    if status == 0:
                        continue  # it had ended between the look and the signal: nobody was killed
                    out["kills"] += 1
                    out["statuses"].append(status)
                    out["in_a_save"] += any((place / "checkpoints").glob(".*.partial"))
            else:
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                if status:
                    raise SystemExit(f"a run that nobody disturbed ended with status {status}")
        out["identical"] += (place / "result").read_text() == calm
    return out


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, kills, seed, number = sys.argv[1:]
    print(json.dumps(main(Path(folder), int(kills), int(seed), getattr(signal, f"SIG{number}"))))
