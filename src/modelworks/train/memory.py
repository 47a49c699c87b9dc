"""Memory: a micro-batch that does not fit is halved, before the start where that can be foreseen, else when it shows.

Losses are sums, so a batch and its halves have the same gradient. How many parts a micro-batch is taken in stands in
the plan and in every checkpoint (`Guard.parts`), so a run that goes on takes the same ones.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from ..base import device, seeds
from ..base.distributed import rank
from ..base.errors import FailureError
from ..base.protocols import Batch

if TYPE_CHECKING:
    from .run import Run

T = TypeVar("T")

SIGNS = ("can't allocate memory", "not enough memory", "out of memory", "bad_alloc", "cannot allocate memory")
ROOM = 0.9  # of the free memory is planned with: the rest is for what is small and for everyone else
BACKWARD = 1.4  # the peak of a step over what its forward pass leaves for the backward pass: 1.2 to 1.3 on decoders
IGNORED = -100


def fitting(run: Run, group: list[Batch], work: Callable[[Batch], T]) -> tuple[list[Batch], list[T]]:
    """`work` (losses and gradients) done on each micro-batch, or on parts of them where the whole does not fit.

    Returns the parts and what `work` gave for each. Where memory runs out, the step's gradients are dropped and it is
    done again in halves, and so is every later step. Raises FailureError where nothing is left to halve.
    """
    while True:
        parts = [part for batch in group for part in cut(batch, run.guard.parts)]
        try:
            with run.computing():
                return parts, [work(part) for part in parts]
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        _halve(run, group)  # not in the handler: what was computed so far hangs on the error


def ran_out(error: BaseException) -> bool:
    """True for an error that says that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def cut(batch: Batch, parts: int) -> list[Batch]:
    """A batch as about `parts` batches of consecutive rows; rows without anything to predict are left out."""
    rows = _rows(batch)
    size = -(-rows // parts)
    if parts == 1 or size >= rows:
        return [batch]
    made = []
    for start in range(0, rows, size):
        inputs = {name: tensor[start : start + size] for name, tensor in batch.inputs.items()}
        weight = _weight(batch, inputs, min(size, rows - start))
        if weight:
            made.append(Batch(inputs, weight, batch.source[start : start + size]))
    return made


def divisible(batch: Batch) -> bool:
    """True where the weight of a part can be told: it counts rows, or labels that are not -100."""
    return batch.weight == _rows(batch) or batch.weight == _labels(batch.inputs)


def _rows(batch: Batch) -> int:
    return min((len(tensor) for tensor in batch.inputs.values()), default=0)


def _weight(batch: Batch, inputs: dict[str, Tensor], rows: int) -> int:
    return _labels(inputs) if batch.weight == _labels(batch.inputs) else rows


def _labels(inputs: dict[str, Tensor]) -> int:
    return int((inputs["labels"] != IGNORED).sum()) if "labels" in inputs else -1


def _halve(run: Run, group: list[Batch]) -> None:
    rows = max(_rows(batch) for batch in group)
    taken = -(-rows // run.guard.parts)
    where = f"step {run.step + 1}: memory ran out with {taken} row{'s' * (taken > 1)} at a time"
    if not run.objective.splittable or not all(divisible(batch) for batch in group):
        raise FailureError(f"{where}, and this objective cannot be split; set rows lower and run again.")
    if run.guard.parts >= rows:
        raise FailureError(f"{where}; set max_len lower, or take a smaller model, and run again.")
    if run.shards is not None:  # its ranks work out each loss together, so that one cannot begin again alone
        raise FailureError(f"{where} while its ranks share one model; set rows lower and accumulate higher.")
    run.guard.parts *= 2
    run.optimizer.clear()
    gc.collect()
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
    seeds.seed_everything(seeds.derive(run.settings.seed, "halved", run.step, rank(), run.guard.parts))
    run.log(f"{where}; from here on it is {-(-rows // run.guard.parts)}, {_consequence(run.model)}")


def _consequence(model: nn.Module) -> str:
    drops = any(isinstance(module, nn.Dropout) and module.p > 0 for module in model.modules())
    return "which gives the same gradient" + (" but for the places that dropout draws." if drops else ".")


@contextlib.contextmanager
def told(run: Run) -> Iterator[None]:
    """Around a run: memory that runs out elsewhere (optimiser, evaluation, saving) ends it with one sentence."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise FailureError(
            f"memory ran out after step {run.step}, outside of losses and gradients; what was saved is untouched: "
            "set rows lower or take a smaller model, and run again."
        ) from None


def foresee(run: Run, batch: Batch) -> None:
    """Before the first step: halve micro-batches until they fit what is free, by what one row leaves behind.

    Linux grants memory that is not there and kills who uses it, so waiting for an error is not enough. Raises
    FailureError where not even one row fits; does nothing where the free memory or a row's need is not known.
    """
    free = device.free_memory(run.device.type)
    if free is None or not run.objective.splittable or not divisible(batch):
        return
    rows, fixed = _rows(batch), _fixed(run)
    row = left_behind(run, cut(batch, rows)[0]) * BACKWARD
    parts = 1
    while parts < rows and fixed + row * -(-rows // parts) > ROOM * free:
        parts *= 2
    need = fixed + row * -(-rows // parts)
    if need > free:
        raise FailureError(
            f"training needs about {need / 1e9:.1f} GB even with one row at a time, and {free / 1e9:.1f} GB are free; "
            "set max_len lower, or take a smaller model."
        )
    if parts > run.guard.parts:
        run.guard.parts = parts
        run.log(
            f"{rows} rows at once need about {(fixed + row * rows) / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free: "
            f"they are taken {-(-rows // parts)} at a time, {_consequence(run.model)}"
        )


def _fixed(run: Run) -> float:
    """Bytes that a run takes whatever its batch: gradients, momenta, averages, lowered copies."""
    count = sum(parameter.numel() for parameter in run.optimizer.parameters)
    return count * (12 + 4 * bool(run.average) + 6 * (run.settings.dtype != "float32"))


def left_behind(run: Run, batch: Batch) -> int:
    """Bytes that a batch's forward pass keeps for its backward pass, weights not counted."""
    weights: set[int] = set()
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with run.computing():
        weights |= {parameter.untyped_storage().data_ptr() for parameter in run.model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            sums = run.objective.loss(run.model, batch)
    del sums
    return sum(kept.values())
