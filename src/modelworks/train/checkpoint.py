"""Checkpoints: the whole state of a run in one sealed directory, found again by its hashes and never trusted without.

    checkpoints/step-000001200/   model.safetensors       weights and buffers
                                  optimizer.safetensors   momenta
                                  state.safetensors       averages, best weights, random states, an objective's tensors
                                  state.json              counts, hooks, the objective's and the loader's place
                                  manifest.json           size and SHA-256 of each, written last

Of a model that lies on several ranks `shard-*.safetensors`, one a rank, stand in place of the first three (`reshard`).

Safetensors and JSON only. The directory appears by one rename when everything in it is on the disk, the two
newest are kept, and the newest whose hashes fit is the one that a restart takes. What is in state.json is plain
data; its tensors stand in state.safetensors and leave a mark (`stored.pack`).

    save     snapshot (what) -> store (seal, rename, prune), around write (the files)
    restore  newest (verify, choose) -> load (the files)
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..base import files, seeds
from ..base.device import DTYPES
from ..base.distributed import barrier, copies, is_main, share, shares
from ..base.errors import DamagedError, UserError
from . import parallel, reshard
from .stored import pack, unpack, write_tensors

if TYPE_CHECKING:
    from .run import Run
    from .trackers import Tracker

FOLDER = "checkpoints"
KEEP = 2
REACH = 16  # steps that a rollback may go back behind the spike (`spikes.SPANS`)
# settings that may change between restarts: they touch no weight (rows and accumulate where the step keeps its rows)
FREE = {"save_every", "log_every", "track", "rows", "accumulate", "parallel"}


@dataclass
class Snapshot:
    """One step exactly: what the files of its checkpoint will hold. Unless it is a copy, good until the next step."""

    step: int
    final: Path
    """Where the checkpoint will stand."""
    tensors: dict[str, dict[str, Tensor]]
    """Tensors by file."""
    state: dict[str, Any]
    trackers: list[Tracker]

    @property
    def bytes(self) -> int:
        """What the tensors take: in memory, if this is a copy, and on the disk."""
        return sum(tensor.nbytes for part in self.tensors.values() for tensor in part.values())


def snapshot(run: Run, copy: bool = False) -> Snapshot | None:
    """This step, as it is or as a copy in main memory while the loop goes on. Every rank must call it.

    Only the first rank, which writes, gets something. A copy costs as much memory as the checkpoint has bytes.
    """
    random = _random_states()
    if not is_main():
        return None
    tensors: dict[str, Tensor] = {}
    state = pack(_state(run) | {"random": random}, tensors)
    parts = {"model": model_tensors(run.model), "optimizer": run.optimizer.tensors(), "state": tensors}
    if copy:
        parts = {part: {n: t.detach().to("cpu", copy=True) for n, t in have.items()} for part, have in parts.items()}
    return Snapshot(run.step, _folder(run, run.step), parts, state, list(run.trackers))


def write(snapshot: Snapshot, work: Path) -> dict[str, str]:
    """The files of a checkpoint but its manifest, into a folder; returns the hashes that are known from writing."""
    known = {}
    for part, tensors in snapshot.tensors.items():
        name = f"{part}.safetensors"
        known[name] = write_tensors(work / name, tensors)
    files.write_json(work / "state.json", snapshot.state)
    return known


def store(snapshot: Snapshot) -> Path:
    """Write, seal and rename; then, and not before, remove all but the newest two. Any thread may call it.

    The log it tells of is on the disk first. Raises FailureError when the disk is full; the checkpoints that were
    there stay as they are.
    """
    known: dict[str, str] = {}
    with files.new_directory(snapshot.final, known=known) as work:
        for tracker in snapshot.trackers:
            tracker.sync()
        known |= write(snapshot, work)
    prune(snapshot.final.parent.parent, snapshot.state["settings"]["guard"])
    return snapshot.final


def save(run: Run) -> Path:
    """Snapshot and store at once. Every rank calls it, the first writes. Raises FailureError when the disk is full."""
    if run.shards is not None:
        return _save_shards(run, _folder(run, run.step))
    taken = snapshot(run)
    if taken is not None:
        store(taken)
    barrier()
    return _folder(run, run.step)


def _save_shards(run: Run, final: Path) -> Path:
    """The same, each rank its own part: `shard-*.safetensors` in place of the three files."""
    tensors: dict[str, Tensor] = {}
    state = pack(_state(run) | {"random": _random_states()}, tensors)
    with contextlib.ExitStack() as stack, files.disk_errors(final):
        work = Path(parallel.gather_text(str(stack.enter_context(files.new_directory(final))) if is_main() else "")[0])
        reshard.write(work, model_tensors(run.model) | run.optimizer.tensors() | tensors)
        if is_main():
            for tracker in run.trackers:
                tracker.sync()
            files.write_json(work / "state.json", state)
    if is_main():
        prune(run.folder, state["settings"]["guard"])
    barrier()
    return final


def restore(run: Run) -> bool:
    """Put the newest good checkpoint into the run; False when there is none. Damaged ones are told and removed.

    Raises UserError when the folder holds a run with other settings or of another model.
    """
    folder = newest(run)
    if folder is not None:
        load(run, folder)
    return folder is not None


def newest(run: Run, until: int | None = None) -> Path | None:
    """The newest checkpoint of the run's folder (of step `until` at most) whose hashes fit.

    Those that do not are told and removed. The first rank looks, and all ranks, which must all call it, take what it
    found.
    """
    chosen = -1
    for folder in found(run.folder) if is_main() else ():
        if until is not None and step_of(folder) > until:
            continue
        try:
            files.verify(folder)
            chosen = step_of(folder)
            break
        except DamagedError as error:
            trouble = str(error)
        except OSError as error:  # the disk itself can no longer read it
            trouble = f"{folder}: cannot be read ({error.strerror})."
        run.log(f"{trouble} Going back to the checkpoint before it.")
        shutil.rmtree(folder, ignore_errors=True)
    chosen = parallel.largest(chosen)[0]
    return _folder(run, chosen) if chosen >= 0 else None


def load(run: Run, folder: Path) -> None:
    """Put a checkpoint into the run. Raises UserError when it is of another run or another model."""
    model, momenta, tensors = _tensors(run, folder)
    state = unpack(files.read_json(folder / "state.json"), tensors)
    _same_run(run, state["settings"], folder)
    load_model(run.model, model, folder)
    run.optimizer.load(momenta)
    _restore_state(run, state)


def _tensors(run: Run, folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Those of the model, of the optimiser and of the other state, whoever wrote them and however many ranks read."""
    if run.shards is not None or any(folder.glob(reshard.SHARD)):
        return reshard.read(folder, run)
    try:
        model, momenta, state = (load_file(folder / f"{part}.safetensors") for part in ("model", "optimizer", "state"))
    except FileNotFoundError:
        raise UserError(f"{folder}: not every rank can read it; use a folder that all machines share.") from None
    return model, momenta, state


def prune(folder: Path, guard: dict[str, Any]) -> None:
    """Remove all but the newest two, those that a replay wants and the one that a rollback may want (`Guarding`)."""
    have = found(folder)
    kept = set(have[:KEEP])
    if guard["spikes"]:
        kept.add(next((path for path in have if step_of(path) <= step_of(have[0]) - REACH), have[-1]))
    for old in have:
        if old not in kept and not (guard["keep_every"] and step_of(old) % guard["keep_every"] == 0):
            shutil.rmtree(old, ignore_errors=True)


def forget_later(run: Run) -> None:
    """Remove the checkpoints of steps that are to be taken again in another way. Every rank must call it."""
    for folder in found(run.folder) if is_main() else ():
        if step_of(folder) > run.step:
            shutil.rmtree(folder, ignore_errors=True)
    barrier()


def discard(folder: Path) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, good or not."""
    names = (folder / FOLDER).glob("step-*")
    return sorted((path for path in names if re.fullmatch(r"step-\d{9,}", path.name)), key=step_of, reverse=True)


def _folder(run: Run, step: int) -> Path:
    return run.folder / FOLDER / f"step-{step:09d}"


def step_of(path: Path) -> int:
    """The step of a checkpoint, by its name."""
    return int(path.name.removeprefix("step-"))


def _state(run: Run) -> dict[str, Any]:
    """Everything but the weights and the momenta, as plain data and tensors."""
    return {
        "format": 1,
        "settings": run.settings.model_dump() | {"rows in a step": _rows(run)},
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.tick(),
        "stopped": run.stopped,
        "metrics": run.metrics,
        "dtype": next(name for name, dtype in DTYPES.items() if dtype == run.dtype),
        "plan": run.plan,
        "guard": run.guard.state_dict(),
        "average": {"steps": run.average.steps, "weights": run.average.tensors()} if run.average else None,
        "hooks": {type(hook).__name__: hook.state_dict() for hook in run.hooks},
        "trackers": {type(tracker).__name__: tracker.state_dict() | {"step": run.step} for tracker in run.trackers},
        "objective": run.objective.state_dict(),
    }


def _restore_state(run: Run, state: dict[str, Any]) -> None:
    run.step, run.tokens, run.seconds = state["step"], state["tokens"], state["seconds"]
    run.stopped, run.metrics, run.plan = state["stopped"], state["metrics"], state["plan"]
    run.dtype = DTYPES[state["dtype"]]
    run.guard.load_state_dict(state["guard"])
    if run.average:
        run.average.load(state["average"]["weights"], state["average"]["steps"])
    for hook in run.hooks:
        if type(hook).__name__ in state["hooks"]:
            hook.load_state_dict(state["hooks"][type(hook).__name__])
    for tracker in run.trackers:
        if type(tracker).__name__ in state["trackers"]:
            tracker.load_state_dict(state["trackers"][type(tracker).__name__])
    run.objective.load_state_dict(state["objective"])
    random = state["random"]
    if share() < len(random):
        seeds.restore(_unpack_random(random[share()]))
    else:  # more ranks than before: the newcomers cannot have a past
        seeds.seed_everything(seeds.derive(run.settings.seed, "rank", share(), run.step))


def _random_states() -> list[Any]:
    """The random state of each part of the data; ranks that share rows have the same one."""
    return [json.loads(text) for text in parallel.gather_text(_random_state())[:: copies()]]


def _random_state() -> str:
    """This rank's random state as text: its few kilobytes of tensors become hex."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items()}
        if isinstance(value, Tensor):
            return {"bytes": value.cpu().numpy().tobytes().hex()}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    return json.dumps(plain(seeds.state()))


def _unpack_random(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"bytes"}:
        return torch.frombuffer(bytearray.fromhex(value["bytes"]), dtype=torch.uint8).clone()
    if isinstance(value, dict):
        return {key: _unpack_random(inner) for key, inner in value.items()}
    return [_unpack_random(inner) for inner in value] if isinstance(value, list) else value


def _same_run(run: Run, saved: dict[str, Any], folder: Path) -> None:
    now = run.settings.model_dump() | {"rows in a step": _rows(run)}
    for name in sorted(set(now) | set(saved)):
        if name not in FREE and now.get(name) != saved.get(name):
            raise UserError(
                f"{folder.parent.parent}: holds a run with {name} {saved.get(name)}, not {now.get(name)}; "
                "put the setting back or use another folder."
            )


def _rows(run: Run) -> int:
    """Rows that all ranks together take in a step: what must stay, however they are shared out."""
    return run.settings.rows * run.settings.accumulate * shares()


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers by name; a tied weight stands once, under its first name."""
    seen: set[int] = set()
    out = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            out[name] = tensor.detach()
    return out


@torch.no_grad()
def load_model(model: nn.Module, tensors: dict[str, Tensor], where: Path) -> None:
    """Copy tensors into the model's own. Raises UserError naming the first that does not fit."""
    own = model_tensors(model)
    for name in sorted(set(own) | set(tensors)):
        here, there = own.get(name), tensors.get(name)
        if here is None or there is None or here.shape != there.shape:
            shapes = [list(t.shape) if t is not None else "not there" for t in (there, here)]
            raise UserError(
                f"{where}: belongs to another model ({name} is {shapes[0]} in it and {shapes[1]} here); "
                "use another folder."
            )
        here.copy_(there)
