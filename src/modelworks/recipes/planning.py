"""What `modelworks plan` prints: a preset's parameters, FLOPs, memory and time here, before anything runs."""

from __future__ import annotations

from typing import Any

import torch

from ..base.config import parse_count
from ..base.device import has_fast_bfloat16, matmul_peak, set_threads
from ..base.errors import UserError
from ..base.log import duration
from ..hub import presets
from ..nn import arithmetic

SHARE = 0.5  # of the measured matmul peak, a round guess: the demo's own training stages reached 0.3 to 0.5 here


def plan(name: str, tokens: str | None, max_len: int | None, rows: int) -> dict[str, Any]:
    """The facts of a preset at `rows` rows of `max_len` tokens (its own, at most 1024, where None).

    Counts are exact; memory and time are estimates, the time from this machine's measured matmul peak.
    Raises UserError for an unknown preset or a budget that is no number.
    """
    family, config = presets.preset(name)
    shape = presets.family_module(family).shape(config)
    seq = max_len or min(int(getattr(config, "max_len", 1024)), 1024)
    budget = parse_count(tokens) if tokens else 20 * arithmetic.parameters(shape)
    if not isinstance(budget, int | float) or budget <= 0 or rows < 1 or seq < 1:
        raise UserError("--tokens, --rows and --max-len must be above zero; write a budget like 2M or 300B.")
    set_threads()
    dtype = torch.bfloat16 if has_fast_bfloat16() else torch.float32
    peak = matmul_peak(dtype)
    memory = arithmetic.training_memory(shape, seq, rows)
    flops = arithmetic.training_flops(shape, seq)
    seconds = budget * flops / (SHARE * peak)
    return {
        "preset": name,
        "family": family,
        "parameters": arithmetic.parameters(shape),
        "forward_flops_per_token": round(arithmetic.forward_flops(shape, seq)),
        "training_flops_per_token": round(flops),
        "training_tokens": round(budget),
        "training_flops": f"{budget * flops:.3g}",
        "memory_weights": _size(memory.weights),
        "memory_gradients": _size(memory.gradients),
        "memory_optimiser": _size(memory.optimiser),
        f"memory_activations_{rows}x{seq}": _size(memory.activations),
        "memory_training": _size(memory.total),
        f"kv_cache_a_row_of_{seq}": _size(arithmetic.kv_bytes(shape, seq)),
        "matmul_peak_here": f"{peak / 1e9:,.0f} GFLOP/s {str(dtype).removeprefix('torch.')}",
        "training_time_here": f"{duration(seconds)} at {SHARE:.0%} of that peak",
    }


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"
