"""Training on accelerators: every layout weighed, the best of each kind shown, the fastest that fits recommended."""

from __future__ import annotations

import math
from typing import Any

from ...base.errors import UserError
from ...nn import arithmetic
from ...nn.arithmetic import Shape
from . import hardware, layouts, speed
from .hardware import Device
from .layouts import Layout

ROOM = 0.95
"""Share of a device's memory that may be planned for."""
COOLING = 1.2
BATCHES = ((1e9, 0.5e6), (5e9, 1e6), (40e9, 2e6), (200e9, 3.2e6), (math.inf, 16e6))
"""Parameters up to which -> tokens in a step (Brown et al. 2020, table 2.1; the last: Llama 3 405B, Dubey et al.)."""


def plan(
    shape: Shape, seq: int, tokens: float, device: Device, gpus: int, batch_tokens: float | None, dropout: bool
) -> dict[str, Any]:
    """Memory, time and cost of training on `tokens` tokens with `gpus` devices. Raises UserError where nothing fits."""
    rows = step_rows(shape, seq, gpus, batch_tokens)
    weighed = _weighed(shape, seq, gpus, rows, device, dropout)
    fitting = [found for found in weighed if found[1].total <= ROOM * device.memory]
    if not fitting:
        least = min(weighed, key=lambda found: found[1].total) if weighed else None
        raise UserError(_too_small(device, gpus, least))
    best = min(fitting, key=_order)
    rows = best[0].rows
    per_step = rows * seq
    steps = math.ceil(tokens / per_step)
    seconds = steps * best[2].total
    return {
        "step": {"rows": rows, "row_tokens": seq, "tokens": per_step, "steps": steps},
        "layouts": [_row(shape, seq, found, device) for found in _shown(weighed, best, device)],
        "recommended": _row(shape, seq, best, device) | {"step_seconds_by_part": _parts(best[2])},
        "cost": cost(device, gpus, seconds),
    }


Weighed = tuple[Layout, layouts.Memory, speed.Step]


def step_rows(shape: Shape, seq: int, gpus: int, batch_tokens: float | None) -> int:
    """Rows in a step: `batch_tokens`, by default GPT-3's for this size, and a row a device group at least."""
    wanted = batch_tokens or next(b for most, b in BATCHES if arithmetic.parameters(shape) <= most)
    rows = max(1, round(wanted / seq))
    power = 2 ** round(math.log2(rows))
    return power if batch_tokens is None else rows


def _weighed(shape: Shape, seq: int, gpus: int, rows: int, device: Device, dropout: bool) -> list[Weighed]:
    node = min(device.node, gpus)
    found = []
    for layout in layouts.candidates(shape, seq, gpus, node, rows):
        held = layouts.memory(shape, seq, layout, dropout=dropout)
        found.append((layout, held, speed.step(shape, seq, layout, device)))
    return found


def fastest(shape: Shape, seq: int, gpus: int, rows: int, device: Device, dropout: bool) -> Weighed | None:
    """The layout that `plan` would recommend; None where none fits."""
    weighed = _weighed(shape, seq, gpus, rows, device, dropout)
    fitting = [found for found in weighed if found[1].total <= ROOM * device.memory]
    return min(fitting, key=_order) if fitting else None


def _order(found: Weighed) -> tuple[float, int]:
    """Faster a row first; within 2 % the one with fewer kinds of cut."""
    layout, _, step = found
    cuts = sum(ranks > 1 for ranks in (layout.tensor, layout.pipeline, layout.context, layout.expert))
    return round(math.log(step.total / layout.rows) / 0.02), cuts + layout.zero


def _kind(layout: Layout) -> tuple[Any, ...]:
    axes = (layout.tensor > 1, layout.pipeline > 1, layout.context > 1, layout.expert > 1)
    return axes if any(axes) else (layout.zero,)


def _shown(weighed: list[Weighed], best: Weighed, device: Device) -> list[Weighed]:
    """The best of each kind: ZeRO's stages alone, then cuts along one and two axes with their best stage."""
    kinds: dict[tuple[Any, ...], list[Weighed]] = {}
    for found in weighed:
        kinds.setdefault(_kind(found[0]), []).append(found)
    rows = []
    for kind, members in kinds.items():
        if len(kind) > 1 and sum(kind) > 2:
            continue
        fits = [m for m in members if m[1].total <= ROOM * device.memory]
        rows.append(min(fits, key=_order) if fits else min(members, key=lambda m: m[1].total))
    return rows if best in rows else [*rows, best]


def _row(shape: Shape, seq: int, found: Weighed, device: Device) -> dict[str, Any]:
    layout, held, step = found
    return {
        "layout": layout.words,
        "data": layout.data, "tensor": layout.tensor, "pipeline": layout.pipeline, "context": layout.context,
        "expert": layout.expert, "zero": layout.zero, "checkpoint": layout.checkpoint, "micro_rows": layout.micro,
        "accumulate": layout.accumulate,
        "memory": {part: getattr(held, part) for part in held.__slots__} | {"total": held.total},
        "fits": held.total <= ROOM * device.memory,
        "step_seconds": step.total,
        "share_of_peak": speed.utilisation(shape, seq, layout, device, step.total),
    }  # fmt: skip


def _parts(step: speed.Step) -> dict[str, float]:
    return {part: getattr(step, part) for part in step.__slots__}


def cost(device: Device, gpus: int, seconds: float) -> dict[str, float]:
    """Days, device hours, dollars and kilowatt-hours."""
    hours = seconds / 3600 * gpus
    return {
        "seconds": seconds, "days": seconds / 86400, "device_hours": hours, "dollars": hours * device.price,
        "kilowatt_hours": hours * device.watts * COOLING / 1000,
    }  # fmt: skip


def _too_small(device: Device, gpus: int, least: Weighed | None) -> str:
    if least is None:
        return f"--gpus {gpus}: the heads, blocks and rows cannot be divided by it; try a power of two."
    need = f"{least[1].total / 1e9:,.0f} GB a device, {least[0].words}"
    return (
        f"--gpus {gpus}: no layout fits in {device.memory / 1e9:.0f} GB of {device.name} (the least needs {need}); "
        "use more or larger devices."
    )


def assumptions(device: Device) -> list[tuple[str, str, str]]:
    """(what, value, source) that the figures rest on."""
    return [
        *hardware.assumptions(device),
        ("bytes a parameter", "2 weights, 2 gradients, 12 optimiser", "ZeRO, Rajbhandari et al. 2020, section 3.1"),
        ("activations", "s b h (34 + 5 a s / h) by part, attention without scores, cut by tensor ranks",
         "Korthikanti et al. 2022; Dao et al. 2022"),
        ("checkpointing", "none, half or all of the blocks; a block runs forward again", "Chen et al. 2016"),
        ("reserved", f"{layouts.RESERVED / 1e9:.0f} GB a device; {ROOM:.0%} of the memory is used", "a round guess"),
        ("pipeline", f"1F1B with up to {layouts.INTERLEAVED} pieces a stage", "Narayanan et al. 2021"),
        ("messages", f"tensor ranks' are not hidden, data ranks' behind {speed.HIDDEN:.0%} of the passes",
         "a round guess that meets published runs"),
        ("hops", f"{speed.HOP_LINK * 1e6:.3g} us in a node, {speed.HOP_NETWORK * 1e6:.3g} us between nodes, a block "
         "and message once round the ring", "the latencies in NCCL's tuning model, rings"),
        ("tokens in a step", "0.5M to 16M by size, or --batch-tokens", "Brown et al. 2020, table 2.1"),
        ("time lost to failures and evaluation", "none", "Llama 3 (Dubey et al. 2024) reports 90 % effective time"),
    ]  # fmt: skip
