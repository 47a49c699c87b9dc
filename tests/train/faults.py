"""Bugs to plant: each removes one guard of crash safety, and the trial that it names must then fail (see `killer.py`)."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from modelworks.base import files
from modelworks.train import checkpoint, saving
from modelworks.train.average import Average
from modelworks.train.hooks import Evaluate
from modelworks.train.log import Log
from modelworks.train.optim import Optimizer
from modelworks.train.saving import Saver
from modelworks.train.signals import Interrupt
from modelworks.train.trackers import Jsonl

from .toys import Next

TRIES = {"kill": 60, "damage": 40, "full": 40, "signal": 40, "power": 60}


@dataclass(frozen=True)
class Fault:
    """One bug: which trial should find it, and how it is planted into the process that trains."""

    trial: str
    plant: Callable[[], None]


FAULTS: dict[str, Fault] = {}


def fault(trial: str) -> Callable[[Callable[[], None]], Callable[[], None]]:
    """Name a planting function as a fault that `trial` must find."""

    def name(plant: Callable[[], None]) -> Callable[[], None]:
        FAULTS[plant.__name__.replace("_", " ")] = Fault(trial, plant)
        return plant

    return name


def ignore(*arguments: Any, **more: Any) -> None:
    """In the place of what should have been done."""


def dropped(owner: Any, name: str) -> Callable[[], None]:
    """A plant that makes `owner.name` do nothing."""
    return lambda: setattr(owner, name, ignore)


FAULTS |= {
    "optimiser state not restored": Fault("kill", dropped(Optimizer, "load")),
    "place in the data not restored": Fault("kill", dropped(Next, "load_state_dict")),
    "average not restored": Fault("kill", dropped(Average, "load")),
    "log not cut": Fault("kill", dropped(Jsonl, "load_state_dict")),
    "open log window not restored": Fault("kill", dropped(Log, "load_state_dict")),
    "early stopping not restored": Fault("kill", dropped(Evaluate, "load_state_dict")),
    "leftovers not swept": Fault("kill", dropped(files, "sweep")),
    "log not fsynced": Fault("power", dropped(Jsonl, "sync")),
    "broken-off evaluation not made up for": Fault("signal", dropped(Evaluate, "begin")),
}


@fault("kill")
def random_state_not_restored() -> None:
    names = {name: getattr(checkpoint.seeds, name) for name in ("state", "derive", "seed_everything")}
    checkpoint.seeds = SimpleNamespace(**names, restore=ignore)  # type: ignore[assignment]


@fault("kill")
def one_batch_skipped() -> None:
    Next.state_dict = lambda self: {"at": self.at + 1}  # type: ignore[method-assign]


@fault("kill")
def tokens_not_restored() -> None:
    restore = checkpoint._restore_state

    def forget(run: Any, state: dict[str, Any]) -> None:
        restore(run, state)
        run.tokens = 0

    checkpoint._restore_state = forget


@fault("kill")
def weights_saved_in_half_precision() -> None:
    tensors = checkpoint.model_tensors
    checkpoint.model_tensors = lambda model: {n: t.to(torch.bfloat16).to(t.dtype) for n, t in tensors(model).items()}


@fault("kill")
def numbers_rounded() -> None:
    pack = checkpoint.pack

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(inner) for key, inner in value.items()}
        return round(value, 4) if isinstance(value, float) else value

    checkpoint.pack = lambda value, tensors: pack(rounded(value), tensors)


@fault("kill")
def snapshot_not_copied() -> None:
    snapshot, write = checkpoint.snapshot, checkpoint.write_tensors
    checkpoint.snapshot = lambda run, copy=False: snapshot(run)
    checkpoint.write_tensors = lambda path, tensors: (time.sleep(0.01), write(path, tensors))[1]


@fault("kill")
def overwritten_in_place() -> None:
    @contextlib.contextmanager
    def same(final: Path, keep: Path | None = None, known: dict[str, str] | None = None) -> Iterator[Path]:
        final.mkdir(parents=True, exist_ok=True)
        for path in final.iterdir():
            path.unlink()
        yield final
        files.seal(final, known)

    files.new_directory = same
    checkpoint._folder = lambda run, step: run.folder / checkpoint.FOLDER / "step-000000001"


def pruned_first() -> None:
    store = checkpoint.store

    def hasty(snapshot: Any) -> Path:
        for old in checkpoint.found(snapshot.final.parent.parent):
            shutil.rmtree(old)
        return store(snapshot)

    checkpoint.store = hasty


FAULTS["old ones removed before the new one stands"] = Fault("kill", pruned_first)
FAULTS["old ones removed to make room"] = Fault("full", pruned_first)


@fault("damage")
def no_hash_check() -> None:
    files.verify = lambda folder, only=None: {}


@fault("damage")
def only_sizes_checked() -> None:
    def sizes(folder: Path, only: str | None = None) -> dict[str, Any]:
        manifest = files.read_json(folder / files.MANIFEST)
        for name, fact in manifest["files"].items():
            if not (folder / name).is_file() or (folder / name).stat().st_size != fact["bytes"]:
                raise files.DamagedError(f"{folder / name}: is damaged.")
        return manifest

    files.verify = sizes


@fault("damage")
def no_fall_back() -> None:
    found = checkpoint.found
    checkpoint.found = lambda folder: found(folder)[:1]


@fault("damage")
def damage_not_told() -> None:
    newest = checkpoint.newest

    def quiet(run: Any, *rest: Any) -> Path | None:
        log, run.log = run.log, ignore
        folder = newest(run, *rest)
        run.log = log
        return folder

    checkpoint.newest = quiet


@fault("full")
def a_failed_save_ends_the_run() -> None:
    saving._disk = lambda error: False


@fault("full")
def no_space_taken_for_saved() -> None:
    store = checkpoint.store

    def swallow(snapshot: Any) -> Path:
        with contextlib.suppress(files.FailureError):
            store(snapshot)
        return snapshot.final

    checkpoint.store = swallow


@fault("full")
def no_waiting_at_the_end() -> None:
    insist = Saver._insist
    Saver._insist = lambda self, run, store, patience: insist(self, run, store, 0.0)  # type: ignore[method-assign]


@fault("full")
def log_lines_dropped() -> None:
    write = Jsonl._write

    def drop(self: Jsonl) -> None:
        write(self)
        self._waiting.clear()
        self._error = None

    Jsonl._write = drop  # type: ignore[method-assign]


@fault("full")
def a_log_line_ends_the_run() -> None:
    write = Jsonl._write

    def strict(self: Jsonl) -> None:
        write(self)
        if self._error:
            raise self._error

    Jsonl._write = strict  # type: ignore[method-assign]


@fault("signal")
def signals_not_caught() -> None:
    Interrupt.watching = lambda self: contextlib.nullcontext()  # type: ignore[method-assign,assignment]


@fault("signal")
def evaluation_not_broken_off() -> None:
    Interrupt.eager = lambda self: contextlib.nullcontext()  # type: ignore[method-assign,assignment]


@fault("signal")
def no_save_at_a_signal() -> None:
    save = Saver.save

    def skip(self: Saver, run: Any, last: bool = False, patience: float = 0.0) -> None:
        if not run.interrupt.number:
            save(self, run, last, patience)

    Saver.save = skip  # type: ignore[method-assign]


@fault("signal")
def writer_not_waited_for() -> None:
    save = Saver.save
    saving.IN_LINE = 0.0
    Saver.save = lambda self, run, last=False, patience=0.0: save(self, run, False)  # type: ignore[method-assign]
    Saver.wait = ignore  # type: ignore[method-assign,assignment]


@fault("signal")
def averages_left_in_the_model() -> None:
    @contextlib.contextmanager
    def lent(self: Average) -> Iterator[None]:
        kept = [w.detach().clone() for w in self.weights.values()]
        self.apply()
        yield
        with torch.no_grad():
            torch._foreach_copy_(list(self.weights.values()), kept)

    Average.applied = lent  # type: ignore[method-assign]


def _fsync_of(folders: bool) -> None:
    fsync = os.fsync
    os.fsync = lambda handle: fsync(handle) if stat.S_ISDIR(os.fstat(handle).st_mode) == folders else None


@fault("power")
def files_not_fsynced() -> None:
    _fsync_of(folders=True)


@fault("power")
def folders_not_fsynced() -> None:
    _fsync_of(folders=False)
