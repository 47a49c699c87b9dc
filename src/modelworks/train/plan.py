"""The plan: a few real steps before the start say how long it will take, how much memory, and in which way.

It costs seconds, leaves no trace in the weights, the optimiser, the data's order or the random state, and is
kept in `plan.json`, so that a restart takes the same road.
"""

from __future__ import annotations

import copy
import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..base import device, files, seeds
from ..base.device import DTYPES
from ..base.distributed import is_main, shares
from ..base.errors import DamagedError
from ..base.log import duration
from . import checkpoint, memory, tune

if TYPE_CHECKING:
    from .run import Run


def make(run: Run, measure: bool = True) -> dict[str, Any]:
    """The plan of a run that has not begun: from `plan.json` if it stands there, else measured, printed and kept."""
    path = run.folder / "plan.json"
    if path.is_file() and not run.plan:
        try:
            run.plan = files.read_json(path)
        except DamagedError:
            run.plan = {}
        if run.plan.get("settings") == run.settings.model_dump(exclude=checkpoint.FREE):
            return run.plan
    wanted = run.settings.dtype
    if measure:
        with memory.told(run):
            run.plan = _measured(run)
    else:
        usual = "float32" if run.shards is None else str(run.shards.dtype).removeprefix("torch.")
        run.plan = {"dtype": usual if wanted == "auto" else wanted}
    run.plan["settings"] = run.settings.model_dump(exclude=checkpoint.FREE)
    if is_main():
        files.write_json(path, run.plan)
        if measure:
            run.log(describe(run.plan))
    return run.plan


def _measured(run: Run) -> dict[str, Any]:
    """Trial steps in each way that comes into question, with everything put back afterwards."""
    random, place = seeds.state(), copy.deepcopy(run.objective.state_dict())
    weights = {name: tensor.clone() for name, tensor in checkpoint.model_tensors(run.model).items()}
    run.model.train()
    try:
        batches = run.objective.batches(run.model)
        group = [run.take(next(batches)) for _ in range(run.settings.accumulate)]
        weight = sum(batch.weight for batch in group) * shares()
        steps = _steps(run, weight)
        if run.settings.dtype != "auto":
            run.dtype = DTYPES[run.settings.dtype]
        memory.foresee(run, group[0])
        loss = tune.gradients(run, group)  # and halves that fit, before anything is timed
        run.optimizer.clear()
        way, seconds = tune.choose(run, group, steps)
        step = seconds[str(way)]
        peak = device.matmul_peak(DTYPES[way.dtype], run.device.type)
    finally:
        checkpoint.load_model(run.model, weights, run.folder)
        run.optimizer.forget()
        run.objective.load_state_dict(place)
        seeds.restore(random)
        positions, run.positions = run.positions, 0
    work = flops(run.model)
    plan: dict[str, Any] = {
        "way": asdict(way),
        "dtype": way.dtype,
        "steps": steps,
        "seconds_per_step": step,
        "seconds": step * steps,
        "tokens_per_step": weight,
        "tokens": weight * steps,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "trained": sum(p.numel() for p in run.optimizer.parameters),
        "memory_bytes": _memory(run),
        "flops_per_position": work,
        "peak_flops": peak,
        "share_of_peak": work * positions / step / peak,
        "loss_before": loss,
        "seconds_measured": seconds,
    }
    if run.guard.parts > 1:
        plan["parts"] = run.guard.parts
    expect = getattr(run.objective, "expect", None)
    bounds = expect(run.model, plan["tokens"]) if expect is not None else None
    if bounds is not None:  # a model that begins below what a fresh one would reach should not end above its start
        plan["loss_after"] = [min(float(bound), loss * share) for bound, share in zip(bounds, (0.75, 1.0), strict=True)]
    return plan


def flops(model: nn.Module) -> int:
    """Floating-point operations a position: for each weight 2 forward, 2 for its input's and 2 for its own gradient.

    Products of weights only (tables are looked up, not multiplied, unless a head is tied to them); attention's own
    products come on top, so a share of peak computed from it is a little low. Torch's counter would see them all,
    but loading it takes a second and 80 MB.
    """
    used = {
        id(parameter): parameter
        for module in model.modules()
        if not isinstance(module, nn.Embedding)
        for parameter in module.parameters(recurse=False)
        if parameter.ndim >= 2
    }
    return sum(parameter.numel() * (6 if parameter.requires_grad else 4) for parameter in used.values())


def _steps(run: Run, weight: int) -> int:
    budget = run.settings
    by_tokens = math.ceil(budget.tokens / max(weight, 1)) if budget.tokens else 0
    return min(n for n in (budget.steps, by_tokens) if n)


def _memory(run: Run) -> int:
    if run.device.type == "cuda":
        return int(torch.cuda.max_memory_allocated())
    return device.peak_memory()


def describe(plan: dict[str, Any]) -> str:
    """The plan as one line for people."""
    loss = f"loss {plan['loss_before']:.2f} now"
    if "loss_after" in plan:
        loss += f", expected between {plan['loss_after'][0]:.2f} and {plan['loss_after'][1]:.2f} after"
    speed = f"{plan['seconds_per_step'] * 1e3:.0f} ms a step, {plan['share_of_peak']:.0%} of peak"
    return (
        f"plan: {plan['steps']:,} steps of {plan['tokens_per_step']:,} tokens, {plan['parameters'] / 1e6:.1f}M "
        f"parameters in {plan['dtype']}: about {duration(plan['seconds'])} ({speed}) "
        f"and {plan['memory_bytes'] / 1e9:.1f} GB; {loss}"
    )
