"""Plans for this machine: training from its measured constants (`here`), and it as one more device for the rest."""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from ...base.device import has_fast_bfloat16, set_threads
from ...base.energy import WATTS_A_CORE
from ...base.errors import UserError
from ...nn.arithmetic import Shape
from . import here
from .hardware import Device


def training(shape: Shape, seq: int, rows: int, tokens: float, dtype: str | None, dropout: float) -> dict[str, Any]:
    """Memory by part and time of training here with rows of `seq` tokens. Raises UserError for an unknown dtype."""
    set_threads()
    machine = here.machine()
    formats = list(machine.facts["formats"])
    if dtype is not None and dtype not in formats:
        raise UserError(f"--dtype {dtype}: this machine multiplies in {' and '.join(formats)}.")
    seconds = {name: here.step_seconds(machine, shape, seq, rows, name) for name in formats}
    chosen = dtype or min(seconds, key=lambda name: seconds[name])
    held = here.memory(machine, shape, seq, rows, chosen, dropout=dropout)
    steps = math.ceil(tokens / (rows * seq))
    total = steps * seconds[chosen]
    return {
        "kind": "training here",
        "device": "cpu",
        "devices": 1,
        "dtype": chosen,
        "step": {"rows": rows, "row_tokens": seq, "tokens": rows * seq, "steps": steps},
        "memory": {part: getattr(held, part) for part in held.__slots__} | {"total": held.total},
        "fits": held.total <= memory_bytes(),
        "step_seconds": seconds[chosen],
        "step_seconds_by_dtype": seconds,
        "cost": {"seconds": total, "days": total / 86400, "device_hours": total / 3600, "dollars": 0.0,
                 "kilowatt_hours": total / 3600 * WATTS_A_CORE * machine.facts["threads"] / 1000},
        "assumptions": [
            {"what": what, "value": value, "source": source} for what, value, source in (
                ("rates", f"products, attention, blocks, head and optimiser on {machine.facts['threads']} threads",
                 "measured here once" + (", while other work slowed it down" if machine.facts.get("busy") else "")),
                ("memory", f"{memory_bytes() / 1e9:.1f} GB; float32 weights, Muon and AdamW as modelworks train does",
                 "what our parts keep, nn/arithmetic.py; trial steps keep a copy of the weights"),
                ("evaluation and checkpoints", "not counted", "their settings decide"),
                ("power", f"{WATTS_A_CORE:.0f} W a core", "a round guess"),
            )
        ],
    }  # fmt: skip


def memory_bytes() -> float:
    """Bytes of this machine's memory."""
    return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def device() -> Device:
    """This machine as a device, for fine-tuning and generating: its products at width 1024 and its bandwidth."""
    set_threads()
    machine = here.machine()
    wanted = "bfloat16" if has_fast_bfloat16() else "float32"
    rate = 1 / machine.facts["formats"][wanted]["linear"]["1024"][0]
    return Device(
        name="cpu", about=f"this machine, {torch.get_num_threads()} threads, {wanted}", memory=memory_bytes(),
        flops=rate, flops8=rate, bandwidth=machine.facts["bandwidth"], link=math.inf, network=math.inf, node=1,
        watts=WATTS_A_CORE * torch.get_num_threads(), price=0.0, price_source="your own machine", reach=1.0,
    )  # fmt: skip
