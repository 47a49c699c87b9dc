"""One dial: `size` settles a decoder's shape and how it is trained; whatever is set beside it wins.

N is what the blocks hold, tables aside (a tokenizer's vocabulary is chosen apart). Shapes: N = 12 L d^2 with a width
of 48 for each layer. Rates know nothing of the width: Muon's fits all, and AdamW's too, since `train/optim.py` slows
the head (`bench/train/transfer.py` shows both). They fall with the steps of the run, and the rows of a step grow with
its tokens. Measured with `bench/train/sweep.py`: shape, rows and rates at 0.25M parameters and 300 steps. The exponents
from there on lean on what is published (batch: a power of the tokens whatever the size, Bergsma et al. 2025, arXiv
2505.13738; tokens: Hoffmann et al. 2022), so at 30M they are a start and no optimum.
"""

from __future__ import annotations

import math
from typing import Any

from ..base.config import parse_count
from ..base.errors import UserError

SMALLEST, LARGEST = 100_000, 100_000_000
TOKENS_PER_PARAMETER = 20
BATCH, AT_TOKENS, POWER = 1536, 400_000, 0.35  # tokens in a step of a run over so many, and how they grow with them
ASPECT = 48
"""Width for each layer; the shallower of two equal models is quicker on a processor, and no worse below 30M."""


def turn(given: dict[str, Any], where: str) -> dict[str, Any]:
    """The settings of a train stage with `size` worked out; as they were when there is none.

    Raises UserError when the size is none, out of range, or stands beside a model that has its own.
    """
    if not given.get("size"):
        return given
    size = parse_count(given["size"])
    if not isinstance(size, int | float) or isinstance(size, bool) or not SMALLEST <= size <= LARGEST:
        raise UserError(
            f"{where}: size is {given['size']}; it goes from 100k to 100M parameters, for instance size: 3M."
        )
    model = given.get("model") or {}
    if not isinstance(model, dict) or {"preset", "family"} & set(model):
        raise UserError(f"{where}: size makes a fresh model, so name no model beside it, or leave size out.")
    tokens, steps = (int(parse_count(given.get(budget) or 0)) for budget in ("tokens", "steps"))
    if steps and not tokens:  # as many as give so many steps of the batch that they ask for
        tokens = round(steps * (BATCH * (steps / AT_TOKENS) ** POWER) ** (1 / (1 - POWER)))
    out = training(int(size), int(parse_count(given.get("max_len", 256))), tokens)
    out |= {key: value for key, value in given.items() if key != "model"} | {"model": shape(int(size)) | model}
    if given.get("steps") and not given.get("tokens"):
        out["tokens"] = 0
    return out


def shape(size: int) -> dict[str, Any]:
    """The decoder whose blocks hold about `size` parameters: heads of 32 below a width of 256, else of 64."""
    n_layers = max(2, round((size / (12 * ASPECT**2)) ** (1 / 3)))
    width = math.sqrt(size / (12 * n_layers))
    d_head = 32 if width < 240 else 64
    n_heads = max(2, round(width / d_head))
    d_model, n_kv_heads = n_heads * d_head, n_heads // 2 if n_heads % 2 == 0 else n_heads
    left = size / n_layers - 2 * d_model * (n_heads + n_kv_heads) * d_head  # for the three of the feed-forward part
    d_ff = 64 * round(min(max(left / (3 * d_model), 2 * d_model), 4 * d_model) / 64)
    return {
        "family": "qwen3", "d_model": d_model, "n_layers": n_layers, "n_heads": n_heads,
        "n_kv_heads": n_kv_heads, "d_head": d_head, "d_ff": d_ff, "max_len": 4096, "rope_theta": 10_000.0,
        "tie_word_embeddings": False,
    }  # fmt: skip


def training(size: int, max_len: int, tokens: int = 0) -> dict[str, Any]:
    """Tokens, rows, rates, decay and warm-up of a run of that size (of so many tokens, where they are given)."""
    tokens = tokens or TOKENS_PER_PARAMETER * size
    batch = BATCH * (tokens / AT_TOKENS) ** POWER  # tokens in a step
    rows = max(1, round(batch / max_len))
    steps = tokens / (rows * max_len)
    return {
        "tokens": tokens,
        "rows": rows,
        "learning_rate": round(max(0.002, min(0.018, 0.018 * (steps / 300) ** -0.4)), 5),
        "matrix_learning_rate": round(max(0.008, min(0.035, 0.035 * (steps / 300) ** -0.25)), 5),
        "weight_decay": 0.0 if steps < 1000 else 0.1,
        "warmup_steps": max(10, min(200, round(steps / 40))),
        "schedule": "linear",
    }
