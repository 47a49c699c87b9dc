"""steps.jsonl: every step exactly, so that a replay can be held against what happened.

    {"step": 8, "loss": "0x1.0c5p+1", "norm": "0x1.9p-1", "batches": ["1a2b3c4d"]}  numbers as hexadecimal floats
    {"step": 9, ..., "skipped": "guilty", "documents": ["a", "b"]}                  what was not applied, and why
    {"after": 0, "threads": 2, "device": "cpu", "dtype": "float32", ...}            the machine, when it changes

About 0.05 ms and 100 bytes a step. `batches` are the fingerprints of the first rank's micro-batches; `parts` stands
there where micro-batches were taken in parts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..base.device import DTYPES
from ..base.distributed import world_size
from . import guard
from .hooks import Hook
from .trackers import Jsonl

if TYPE_CHECKING:
    from .run import Run

FILE = "steps.jsonl"


class Steps(Jsonl):
    """The file. Like metrics.jsonl it is cut back to where a checkpoint stands; what others track is not for it."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Nothing: means over steps are for the other trackers."""

    def text(self, step: int, name: str, prompt: str, said: str) -> None:
        """Nothing."""

    def add(self, record: dict[str, Any]) -> None:
        """Append a record."""
        self._append(record)


class Record(Hook):
    """Writes each step down, and what it ran on whenever that changed."""

    def __init__(self, steps: Steps | None) -> None:
        self.steps = steps
        self.machine: dict[str, Any] = {}

    def begin(self, run: Run) -> None:
        """Say what the run goes on with, where it is something else than before."""
        now = machine(run)
        if self.steps is not None and now != self.machine:
            self.steps.add({"after": run.step} | now)
        self.machine = now

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        """One line."""
        if self.steps is None:
            return
        record: dict[str, Any] = {"step": run.step, "loss": logs["loss"].hex(), "norm": logs["gradient_norm"].hex()}
        record["batches"] = [guard.fingerprint(batch) for batch in run.group]
        if run.guard.parts > 1:
            record["parts"] = run.guard.parts
        if run.guard.reason:
            record["skipped"] = run.guard.reason
            record["documents"] = [name for batch in run.group for name in guard.documents(run, batch)]
        self.steps.add(record)

    def state_dict(self) -> dict[str, Any]:
        """The machine."""
        return {"machine": self.machine}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take it back."""
        self.machine = state["machine"]


def machine(run: Run) -> dict[str, Any]:
    """What decides over the last bits of a step."""
    return {
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if run.device.type == "cuda" else run.device.type,
        "ranks": world_size(),
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == run.dtype),
        "torch": torch.__version__,
    }


def read(path: Path) -> tuple[dict[int, dict[str, Any]], dict[str, Any]]:
    """The records by step, and the newest machine. A last line that was cut short is left out."""
    records: dict[int, dict[str, Any]] = {}
    machine: dict[str, Any] = {}
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if "step" in record:
            records[int(record["step"])] = record
        else:
            machine = record
    return records, machine
