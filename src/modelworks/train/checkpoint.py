"""Checkpoints: the whole state of a run in one sealed directory, found again by its hashes and never trusted without.

    checkpoints/step-000001200/   model.safetensors       weights and buffers
                                  optimizer.safetensors   momenta
                                  state.safetensors       averages, best weights, random states, an objective's tensors
                                  state.json              counts, hooks, the objective's and the loader's place
                                  manifest.json           size and SHA-256 of each, written last

Safetensors and JSON only. The directory appears by one rename when everything in it is on the disk, the two
newest are kept, and the newest whose hashes fit is the one that a restart takes. What is in state.json is plain
data; its tensors stand in state.safetensors and leave a mark (`pack` and `unpack`).
"""

from __future__ import annotations

import errno
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..base import files, seeds
from ..base.device import DTYPES
from ..base.distributed import barrier, is_main, rank
from ..base.errors import DamagedError, UserError
from . import parallel

if TYPE_CHECKING:
    from .run import Run

FOLDER = "checkpoints"
KEEP = 2
FREE = {"save_every", "log_every", "track"}  # settings that may change between restarts: they touch no weight
MARK = "__tensor__"


def save(run: Run) -> Path:
    """Write a checkpoint of this step, then remove all but the newest two. Every rank calls it, the first writes.

    Raises FailureError when the disk is full; the checkpoints that were there stay as they are.
    """
    random = [json.loads(text) for text in parallel.gather_text(_random_state())]
    final = run.folder / FOLDER / f"step-{run.step:09d}"
    if is_main():
        tensors: dict[str, Tensor] = {}
        state = pack(_state(run) | {"random": random}, tensors)
        with files.new_directory(final) as work:
            write_tensors(work / "model.safetensors", model_tensors(run.model))
            write_tensors(work / "optimizer.safetensors", run.optimizer.tensors())
            write_tensors(work / "state.safetensors", tensors)
            files.write_json(work / "state.json", state)
        for old in found(run.folder)[KEEP:]:
            shutil.rmtree(old, ignore_errors=True)
    barrier()
    return final


def restore(run: Run) -> bool:
    """Put the newest good checkpoint into the run; False when there is none. Damaged ones are told and removed.

    Raises UserError when the folder holds a run with other settings or of another model.
    """
    for folder in found(run.folder):
        try:
            files.verify(folder)
        except DamagedError as error:
            run.log(f"{error} Going back to the checkpoint before it.")
            barrier()
            if is_main():
                shutil.rmtree(folder, ignore_errors=True)
            barrier()
            continue
        state = unpack(files.read_json(folder / "state.json"), load_file(folder / "state.safetensors"))
        _same_run(run, state["settings"], folder)
        load_model(run.model, load_file(folder / "model.safetensors"), folder)
        run.optimizer.load(load_file(folder / "optimizer.safetensors"))
        _restore_state(run, state)
        return True
    return False


def discard(folder: Path) -> None:
    """Remove all checkpoints of a finished run."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)


def found(folder: Path) -> list[Path]:
    """The checkpoint directories of a run, newest first, good or not."""
    names = (folder / FOLDER).glob("step-*")
    return sorted((path for path in names if re.fullmatch(r"step-\d{9,}", path.name)), key=_step, reverse=True)


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _state(run: Run) -> dict[str, Any]:
    """Everything but the weights and the momenta, as plain data and tensors."""
    return {
        "format": 1,
        "settings": run.settings.model_dump(),
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
    if rank() < len(random):
        seeds.restore(_unpack_random(random[rank()]))
    else:  # more ranks than before: the newcomers cannot have a past
        seeds.seed_everything(seeds.derive(run.settings.seed, "rank", rank(), run.step))


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
    now = run.settings.model_dump()
    for name in sorted(set(now) | set(saved)):
        if name not in FREE and now.get(name) != saved.get(name):
            raise UserError(
                f"{folder.parent.parent}: holds a run with {name} {saved.get(name)}, not {now.get(name)}; "
                "put the setting back or use another folder."
            )


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


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Safetensors file of these tensors. Raises OSError with its number, as Python's own writing would."""
    try:
        save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise OSError(int(number[1]) if number else errno.EIO, str(error), str(path)) from error


def pack(value: Any, tensors: dict[str, Tensor], path: str = "") -> Any:
    """Plain data for JSON; every tensor in `value` moves to `tensors` under its path and leaves a mark.

    Raises TypeError for what would not come back the same: other types, and keys that are not strings.
    """
    if isinstance(value, Tensor):
        tensors[path] = value
        return {MARK: path}
    if isinstance(value, dict):
        if any(not isinstance(key, str) for key in value):
            raise TypeError(f"{path}: the keys of a state must be strings")
        return {key: pack(inner, tensors, f"{path}/{key}") for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [pack(inner, tensors, f"{path}/{number}") for number, inner in enumerate(value)]
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError(f"{path}: a state may not hold a {type(value).__name__}")


def unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The inverse of `pack` (tuples come back as lists); tensors are copies in memory of torch's own alignment."""
    if isinstance(value, dict):
        if set(value) == {MARK}:
            return tensors[value[MARK]].clone()
        return {key: unpack(inner, tensors) for key, inner in value.items()}
    return [unpack(inner, tensors) for inner in value] if isinstance(value, list) else value
