"""The loop. It sees an objective, a model and an iterator, and never a family, a data set or an algorithm.

Losses are sums; they are divided once, by the weight of all micro-batches on all ranks. So how a batch is cut
into micro-batches, packed into rows or spread over ranks never changes the gradient.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from ..base.distributed import all_reduce_sum
from ..base.errors import UserError
from ..base.protocols import Batch
from . import parallel, schedule
from .guard import SPIKE
from .memory import fitting
from .run import Run
from .spikes import roll_back


def train(run: Run) -> dict[str, float]:
    """Train until the budget is spent or a hook stops it.

    Returns the last metrics; the model then holds the weights to keep. Raises FailureError when the disk is full,
    not even one row fits memory, losses diverge or keep being not finite; SystemExit (143, 130) after the save that
    a signal asked for.
    """
    with run.working():
        batches = run.objective.batches(run.model)
        while not run.done:
            run.group = [run.take(next(batches)) for _ in range(run.settings.accumulate)]
            total = all_reduce_sum(sum(batch.weight for batch in run.group))
            parts, sums = fitting(run, run.group, partial(backward, run, total=total))
            logs = update(run, parts, sums, total)
            if run.guard.reason == SPIKE and roll_back(run):
                batches = run.objective.batches(run.model)
                continue
            for hook in run.hooks:
                hook(run, logs)  # log and show, evaluate and stop early, save: each resumable
    return finish(run)


def backward(run: Run, batch: Batch, total: float) -> dict[str, Tensor]:
    """Add a micro-batch's share to the gradients; returns its sums, detached."""
    if total <= 0:
        raise UserError(f"step {run.step + 1}: the batch has nothing to predict; check how the data is masked.")
    sums = run.objective.loss(run.model, batch)
    (sums["loss"] / total).backward()
    return {name: value.detach() for name, value in sums.items()}


def update(run: Run, group: list[Batch], sums: list[dict[str, Tensor]], total: float) -> dict[str, float]:
    """Sum over ranks, look, clip, step; returns the step's means. The only place where numbers leave the device."""
    parameters, rate = run.optimizer.parameters, run.scale
    norm = parallel.sum_gradients(run.optimizer, run.shards)
    gradients = [p.grad for p in parameters if p.grad is not None]
    sizes = parallel.sum_tensor(torch.stack([sum(s[name] for s in sums) for name in sums[0]]).float())  # type: ignore[misc]
    *values, size = torch.cat([sizes, norm.to(sizes).view(1)]).tolist()
    logs = {name: value / total for name, value in zip(sums[0], values, strict=True)}
    if run.guard.passes(run.step, logs["loss"], size):
        if 0 < run.settings.clip < size:
            torch._foreach_mul_(gradients, run.settings.clip / size)
        run.optimizer.step(rate, schedule.inertia(run.step))
        if run.average:
            run.average.update()
    else:
        run.guard.tell(run, logs["loss"], [s["loss"] for s in sums], group)
    run.guard.check(run)
    run.optimizer.clear()
    run.step += 1
    run.tokens += int(total)
    return logs | {"gradient_norm": size, "learning_rate": run.settings.learning_rate * rate}


def finish(run: Run) -> dict[str, float]:
    """Put the weights to keep into the model: the best (if `patience` was given), else the average, else the last."""
    if run.average:
        run.average.apply()
    for hook in run.hooks:
        hook.finish(run)
    counts = {"steps": float(run.step), "tokens": float(run.tokens), "seconds": round(run.seconds, 1)}
    return run.metrics | counts | {"skipped": float(run.guard.skipped)}
