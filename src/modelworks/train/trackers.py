"""Where the curves go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for and installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..base import files
from ..base.distributed import is_main
from ..base.errors import UserError

if TYPE_CHECKING:
    from .run import Run


class Tracker(Protocol):
    """Takes values of a step; `state_dict` says how far it is written, `load_state_dict` goes back there."""

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Jsonl:
    """`metrics.jsonl`: one line a record, `{"step": 10, "loss": 2.1, ...}`; not-finite numbers are null."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with files.disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a record; it is on the way to the disk at once and surely there after a checkpoint."""
        clean = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **clean}).encode() + b"\n"
        with files.disk_errors(self.path):
            while line:  # unbuffered, so that a full disk is told here and not when the file is closed
                line = line[self.file.write(line) :]

    def close(self) -> None:
        """Close the file (again is fine)."""
        self.file.close()

    def state_dict(self) -> dict[str, Any]:
        """How long the file is, once it is on the disk."""
        if not self.file.closed:
            with files.disk_errors(self.path):
                os.fsync(self.file.fileno())
        return {"bytes": self.path.stat().st_size}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut off what was written after the checkpoint: those steps come again."""
        if self.path.stat().st_size > state["bytes"]:
            os.truncate(self.path, state["bytes"])


class TensorBoard:
    """Event files in `tensorboard/`; steps after a checkpoint that come again replace the old ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.writer: Any = None
        self.purge: int | None = None

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add each value as a scalar."""
        if self.writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.purge)
        with files.disk_errors(self.folder):
            for name, value in values.items():
                self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the step is the run's."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next file says from which step on older ones no longer count."""
        self.purge = state.get("step")


class Wandb:
    """Weights & Biases; offline unless WANDB_MODE says otherwise, since nothing is sent that was not asked for."""

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        name = files.digest(str(folder.resolve()))[:8]
        self.session: Any = wandb.init(
            project="modelworks",
            id=name,
            name=folder.name,
            dir=str(folder),
            config=settings,
            mode=os.environ.get("WANDB_MODE", "offline"),
            resume="allow",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values at their step."""
        self.session.log(values, step=step)

    def close(self) -> None:
        """Finish the session."""
        self.session.finish()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: W&B itself refuses steps that it already has."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do."""


def make(run: Run) -> list[Tracker]:
    """The trackers of a run (on the first rank only). Raises UserError when W&B is asked for and not installed."""
    if not is_main():
        return []
    out: list[Tracker] = [Jsonl(run.folder / "metrics.jsonl")]
    if "tensorboard" in run.settings.track:
        if importlib.util.find_spec("tensorboard"):
            out.append(TensorBoard(run.folder / "tensorboard"))
        else:
            run.log(
                "TensorBoard is not installed: the curves are in metrics.jsonl only (pip install 'modelworks[track]')."
            )
    if "wandb" in run.settings.track:
        if not importlib.util.find_spec("wandb"):
            raise UserError("track: wandb is not installed; pip install wandb, or leave it out of track.")
        out.append(Wandb(run.folder, run.settings.model_dump()))
    return out
