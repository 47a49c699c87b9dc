"""Tuning: a few real steps in each way of working that comes into question; the fastest stays.

A way is a number format, a number of threads, compiled blocks or plain ones, and the parts that a micro-batch is
taken in. They are tried one after another, each from the best so far, and only while trying may pay: a run of a minute
is not worth a compiler's minute. What was found is remembered for this model and machine (`device.remembered`).
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ..base import device
from ..base.device import DTYPES
from ..base.distributed import world_size
from ..base.protocols import Batch
from . import blocks, memory, parallel

if TYPE_CHECKING:
    from .run import Run

GAIN = 1.1  # bfloat16 must be this much faster to be taken: below it, the clearer numbers win
LITTLE = 1.03  # and so much any other way: below it lies noise
PATIENCE = 6.0  # seconds that the trial steps of one way may take
SHARE = 0.03  # of the planned time may go into trying
COMPILING = 60.0  # seconds that compiling takes, about
LARGE = 30_000_000  # parameters from which products decide, and float32's memory need not be asked for in a trial
PARTS = (2, 4)


@dataclass(frozen=True)
class Way:
    """How steps are worked out. It changes speed and memory, and results by rounding only."""

    dtype: str = "float32"
    threads: int = 1
    compiled: bool = False
    parts: int = 1

    def __str__(self) -> str:
        words = [self.dtype, f"{self.threads} thread{'s' * (self.threads > 1)}"]
        words += ["compiled blocks"] * self.compiled + [f"micro-batches in {self.parts} parts"] * (self.parts > 1)
        return ", ".join(words)


def apply(run: Run, way: Way) -> None:
    """Work in this way from now on."""
    run.dtype = DTYPES[way.dtype]
    torch.set_num_threads(way.threads)
    blocks.compiled(run.model, way.compiled)
    run.guard.parts = way.parts


def choose(run: Run, group: list[Batch], steps: int) -> tuple[Way, dict[str, float]]:
    """The way to take, and the seconds of a step in each that was tried (the chosen one always). The run is in it then.

    Gradients and the optimiser's state are those of the trials: the caller drops them.
    """
    seconds: dict[Way, float] = {}

    def time_of(way: Way) -> float:
        if way not in seconds:
            apply(run, way)
            seconds[way] = parallel.largest(int(_time(run, group) * 1e9))[0] / 1e9
        return seconds[way]

    first = Way(threads=torch.get_num_threads(), parts=run.guard.parts)
    tune, wanted = run.settings.tune, run.settings.dtype
    if wanted != "auto":
        first = replace(first, dtype=wanted)
    if tune == "off" and wanted != "auto":
        found = first
    else:
        question = _question(run, group) | {"first": asdict(first), "dtype": wanted, "tune": tune}
        if tune == "auto":  # a longer run may try more
            question["worth"] = sum(steps * _guess(run, group) * SHARE > cost for cost in (1.0, 10.0, COMPILING))
        if world_size() > 1:  # memories of several machines may differ, and ranks must not
            found = _search(run, first, time_of, steps)
        else:
            found = Way(**device.remembered(question, lambda: asdict(_search(run, first, time_of, steps))))
    time_of(found)
    apply(run, found)
    if len(seconds) > 1:
        run.log(f"tuned: {found}, {seconds[first] / seconds[found]:.2f} times as fast as {first}")
    return found, {str(way): value for way, value in seconds.items()}


def _search(run: Run, first: Way, time_of: Callable[[Way], float], steps: int) -> Way:
    best = first
    if run.settings.dtype == "auto" and device.has_fast_bfloat16(run.device.type):
        lower = replace(first, dtype="bfloat16")
        large = sum(p.numel() for p in run.optimizer.parameters) > LARGE
        if large or time_of(first) > GAIN * time_of(lower):
            best = lower
    if run.settings.tune == "off":
        return best
    tried = 0.0
    for change, cost in _changes(run, first):
        way = replace(best, **change)
        price = cost + min(PATIENCE, 6 * time_of(best))
        worth = run.settings.tune == "full" or tried + price < SHARE * steps * time_of(best)
        if worth:
            tried += price
            if time_of(best) > LITTLE * time_of(way):
                best = way
    return best


def _changes(run: Run, first: Way) -> Iterator[tuple[dict[str, Any], float]]:
    """What may be changed in the way so far, and the seconds that it costs before its first step."""
    if first.threads > 1 and run.device.type == "cpu" and "MODELWORKS_THREADS" not in os.environ:
        yield {"threads": 1}, 0.0
    if run.shards is None and any(True for _ in blocks.blocks(run.model)):
        yield {"compiled": True}, COMPILING
    if run.objective.splittable and first.parts == 1:
        for parts in PARTS:
            if run.settings.rows % parts == 0:
                yield {"parts": parts}, 0.0


def _question(run: Run, group: list[Batch]) -> dict[str, Any]:
    return {
        "what": "way of training",
        "parameters": [list(p.shape) for p in run.optimizer.parameters],
        "inputs": [list(t.shape) for t in group[0].inputs.values()],
        "accumulate": len(group),
        "device": run.device.type,
        "threads": torch.get_num_threads(),
    }


def _guess(run: Run, group: list[Batch]) -> float:
    """Seconds of a step if it ran at half of the machine's peak: only to tell short runs from long ones."""
    places = sum(t.numel() for batch in group for t in list(batch.inputs.values())[:1])
    work = 6 * sum(p.numel() for p in run.optimizer.parameters) * places
    return 2 * work / device.matmul_peak(torch.float32, run.device.type)


def _time(run: Run, group: list[Batch]) -> float:
    """Median seconds of a whole step: forward, backward, clip norm and optimiser (at rate zero); inf where it fails."""
    taken: list[float] = []
    began = time.perf_counter()
    try:
        while len(taken) < 6 and (len(taken) < 2 or time.perf_counter() - began < PATIENCE):
            started = time.perf_counter()
            loss = gradients(run, group)
            torch.nn.utils.get_total_norm([p.grad for p in run.optimizer.parameters if p.grad is not None])
            if math.isfinite(loss):
                run.optimizer.step(0.0)
            run.optimizer.clear()
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    except RuntimeError as error:
        if not memory.ran_out(error):
            raise
        run.optimizer.clear()
        return 1e6
    warm = sorted(taken[1:])
    return warm[len(warm) // 2]


def gradients(run: Run, group: list[Batch]) -> float:
    """Add the gradients of a step to the parameters, in halves where memory runs out; returns its mean loss."""
    total = max(sum(batch.weight for batch in group), 1)

    def work(part: Batch) -> float:
        loss = run.objective.loss(run.model, part)["loss"] / total
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    return sum(memory.fitting(run, group, work)[1])
