"""Where the curves go: metrics.jsonl always, TensorBoard and Weights & Biases when asked for and installed."""

from __future__ import annotations

import contextlib
import html
import importlib.util
import json
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import files
from ..base.distributed import is_main
from ..base.errors import FailureError, UserError

FLUSH = 5.0  # seconds for which TensorBoard's curves may lag
WAITING = 1000  # records that TensorBoard is given again after its disk was full

if TYPE_CHECKING:
    from .histograms import Histogram
    from .run import Run


class Tracker:
    """Parent of the trackers. `state_dict` says how far it is written, `load_state_dict` goes back there.

    A disk that takes nothing more stops no run: what could not be written waits, and `trouble` says why.
    """

    draws = False
    """True where pictures of the weights have a place; only then are they made."""

    trouble = ""
    """Why the last record could not be written yet, in one sentence without an end."""

    def write(self, step: int, values: dict[str, float]) -> None:
        """Take values of a step."""

    def text(self, step: int, name: str, prompt: str, said: str) -> None:
        """Take what the model says after a prompt."""

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Take pictures of the weights by name."""

    def sync(self) -> None:
        """Bring what is written to the disk; any thread may ask, before a checkpoint that tells of it is sealed."""

    def close(self) -> None:
        """The process ends."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back; `step` is the checkpoint's."""


class Jsonl(Tracker):
    """`metrics.jsonl`: one JSON object a line, each with `step`; not-finite numbers are null.

    Every `log_every` steps the means over them: `loss` and the objective's other measures (a predicted token each),
    `gradient_norm` before clipping, `learning_rate`; and where the run is: `tokens` predicted so far,
    `tokens_per_second` (places computed, padding too, evaluations and checkpoints left out), `share_of_peak` (of the
    machine's measured matrix products), `seconds` so far and `seconds_left`, `memory` and `memory_peak` in bytes,
    `energy_wh` so far (see `base.energy`). After an evaluation: `validation_loss` and its like. For each sample of the
    model: `sample` (its name), `prompt` and `text`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._waiting = bytearray()
        self._error: OSError | None = None
        self._lock = threading.Lock()
        with files.disk_errors(path):
            files.make_directory(path.parent)
            self.file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
            files.fsync(path.parent)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Append a record; it is on the way to the disk at once and surely there after a checkpoint."""
        self._append({"step": step, **{n: value if math.isfinite(value) else None for n, value in values.items()}})

    def text(self, step: int, name: str, prompt: str, said: str) -> None:
        """Append what the model said."""
        self._append({"step": step, "sample": name, "prompt": prompt, "text": said})

    def _append(self, record: dict[str, Any]) -> None:
        line = json.dumps(record, ensure_ascii=False).encode(errors="replace") + b"\n"
        with self._lock:
            self._waiting += line
        self._write()

    def _write(self) -> None:
        """Write what waits, as far as the disk takes it. Unbuffered: a full disk is told here, not at the end."""
        with self._lock:
            try:
                while self._waiting:
                    del self._waiting[: self.file.write(self._waiting)]
                self._error, self.trouble = None, ""
            except OSError as error:
                self._error, self.trouble = error, f"{self.path}: {error.strerror}"

    def sync(self) -> None:
        """Every record is on the disk. Raises OSError when it is full."""
        if self.file.closed:
            return
        self._write()
        if self._error is not None:
            raise OSError(self._error.errno, self._error.strerror, str(self.path))
        os.fsync(self.file.fileno())

    def close(self) -> None:
        """Close the file (again is fine)."""
        if not self.file.closed:
            self._write()
            self.file.close()

    def state_dict(self) -> dict[str, Any]:
        """How long the file is, once it is all on the disk (`sync`)."""
        with self._lock:
            return {"bytes": self.path.stat().st_size + len(self._waiting)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Cut off what was written after the checkpoint: those steps come again."""
        if self.path.stat().st_size > state["bytes"]:
            os.truncate(self.path, state["bytes"])


class TensorBoard(Tracker):
    """Event files in `tensorboard/`; steps after a checkpoint that come again replace the old ones."""

    draws = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.opened: Any = None
        self.purge: int | None = None
        self._waiting: deque[Callable[[Any], None]] = deque(maxlen=WAITING)
        self._flushed = 0.0

    @property
    def writer(self) -> Any:
        """Opened when there is something to write."""
        if self.opened is None:
            from torch.utils.tensorboard import SummaryWriter

            self.opened = SummaryWriter(str(self.folder), purge_step=self.purge)
            self.purge = None
        return self.opened

    def write(self, step: int, values: dict[str, float]) -> None:
        """Add each value as a scalar."""

        def add(writer: Any) -> None:
            for name, value in values.items():
                writer.add_scalar(name, value, step)

        self._add(add)

    def text(self, step: int, name: str, prompt: str, said: str) -> None:
        """Add a text; what the model wrote stands as code, so that its marks are not read as markup."""
        lines = [f"    {line}" for line in f"{prompt}|{said}".splitlines()]
        self._add(lambda writer: writer.add_text(name, "\n".join(lines), step))

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Add each with its sums."""

        def add(writer: Any) -> None:
            for name, h in found.items():
                low, high = float(h.edges[0]), float(h.edges[-1])
                writer.add_histogram_raw(
                    name, low, high, h.seen, h.total, h.squares, h.edges[1:].tolist(), h.counts.tolist(), step
                )

        self._add(add)

    def _add(self, add: Callable[[Any], None]) -> None:
        """Give it to the writer, which has a thread of its own; what it took and did not write yet is given again.

        A writer whose disk was full is of no use any more: the next one has a new file.
        """
        again = self.opened is None
        self._waiting.append(add)
        try:
            if self.trouble:  # is there space again? The writer's thread would complain about it at length
                files.write_bytes(self.folder / "space", bytes(2**16))
                (self.folder / "space").unlink()
            for one in list(self._waiting) if again else [add]:
                one(self.writer)
            if again or time.monotonic() - self._flushed > FLUSH:
                self.writer.flush()
                self._waiting.clear()
                self._flushed, self.trouble = time.monotonic(), ""
        except (OSError, FailureError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            self.trouble = f"{self.folder}: {cause.strerror if isinstance(cause, OSError) else error}"
            self.close()

    def close(self) -> None:
        """Flush and close."""
        if self.opened is not None:
            with contextlib.suppress(OSError):
                self.opened.close()
            self.opened = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The next file says from which step on older ones no longer count."""
        self.purge = state.get("step")


class Wandb(Tracker):
    """Weights & Biases; offline unless WANDB_MODE says otherwise, since nothing is sent that was not asked for.

    A step is sent when the next one begins, as W&B wants it: all that is known about a step must come in one piece.
    """

    draws = True

    def __init__(self, folder: Path, settings: dict[str, Any]) -> None:
        import wandb

        self.wandb: Any = wandb
        name = files.digest(str(folder.resolve()))[:8]
        self.session: Any = wandb.init(
            project="modelworks",
            id=name,
            name=folder.name,
            dir=str(folder),
            config=settings,
            mode=os.environ.get("WANDB_MODE", "offline"),  # type: ignore[arg-type]
            resume="allow",
            settings=wandb.Settings(silent=True),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Log the values at their step."""
        self.session.log(values, step=step)

    def text(self, step: int, name: str, prompt: str, said: str) -> None:
        """Log a text."""
        shown = f"<pre><b>{html.escape(prompt)}</b>{html.escape(said)}</pre>"
        self.session.log({name: self.wandb.Html(shown, inject=False)}, step=step)

    def histograms(self, step: int, found: dict[str, Histogram]) -> None:
        """Log each."""
        made = {n: self.wandb.Histogram(np_histogram=(h.counts.tolist(), h.edges.tolist())) for n, h in found.items()}
        self.session.log(made, step=step)

    def close(self) -> None:
        """Finish the session."""
        self.session.finish()


def make(run: Run) -> list[Tracker]:
    """The trackers of a run (on the first rank only). Raises UserError when W&B is asked for and not installed."""
    if not is_main():
        return []
    from .steps import FILE, Steps

    out: list[Tracker] = [Jsonl(run.folder / "metrics.jsonl"), Steps(run.folder / FILE)]
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
