"""This machine's constants, measured on parts of their own sizes: `python -m modelworks.recipes.planning.measure`.

It prints one JSON object. A process of its own, so that what it allocates does not stay with the caller, and so that
the memory of a training process can be told at all. About ten seconds on two cores; `here` remembers the answer.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...base.config import build
from ...base.device import has_fast_bfloat16, peak_memory, set_threads
from ...data.loader import Documents, Loader
from ...data.tokens import TokenData
from ...models import gpt2, qwen3
from ...nn.blockwise import Blockwise
from ...nn.heads import CrossEntropy
from ...objectives.causal_lm import CausalLM
from ...train.loop import train
from ...train.optim import Muon, Optimizer
from ...train.run import start
from ...train.settings import TrainSettings
from . import here
from .here import REFERENCE

WIDTHS = (128, 256, 512, 1024)
ROWS = (384, 1536)
LENGTHS = (64, 256, 1024)
clock: Callable[[], float] = time.perf_counter


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of `work` after a warm-up."""
    work()
    seconds = []
    for _ in range(repeats):
        began = clock()
        work()
        seconds.append(clock() - began)
    return sorted(seconds)[len(seconds) // 2]


def passes(make: Callable[[], Tensor], *leaves: Tensor) -> Callable[[], None]:
    """Forward and backward of `make`, gradients dropped as a step drops them."""

    def work() -> None:
        out = make()
        out.backward(torch.ones_like(out))
        for leaf in leaves:
            leaf.grad = None

    return work


def linear(dtype: torch.dtype) -> dict[str, list[float]]:
    """Width -> seconds a FLOP, and seconds a parameter that come with every use of a matrix."""
    out = {}
    for width in WIDTHS:
        weight = torch.randn(width, width, dtype=dtype, requires_grad=True)
        taken = []
        for rows in ROWS:
            x = torch.randn(rows, width, dtype=dtype, requires_grad=True)
            taken.append(timed(passes(lambda x=x, w=weight: F.linear(x, w), x, weight)))  # type: ignore[misc]
        flops = [6 * rows * width**2 for rows in ROWS]
        slope = (taken[1] - taken[0]) / (flops[1] - flops[0])
        slope = min(max(slope, 0.5 * taken[1] / flops[1]), taken[1] / flops[1])
        out[str(width)] = [slope, max(0.0, taken[0] - slope * flops[0]) / width**2]
    return out


def attention(dtype: torch.dtype) -> dict[str, list[float]]:
    """Length -> seconds a head, query and seen key: a constant part and one for each number of the head's width."""
    out = {}
    for seq in LENGTHS:
        batch, heads = max(1, 2048 // seq), 6
        taken = []
        for width in (32, 64):
            q, k, v = (torch.randn(batch, heads, seq, width, dtype=dtype, requires_grad=True) for _ in range(3))
            mask = torch.full((seq, seq), float("-inf"), dtype=dtype).triu_(1)
            work = lambda q=q, k=k, v=v, m=mask: Blockwise.apply(q, k, v, m, 0.125, True)  # noqa: E731
            taken.append(timed(passes(work, q, k, v), 3) / (batch * heads * seq * (seq + 1) / 2))
        slope = max(0.0, (taken[1] - taken[0]) / 32)
        out[str(seq)] = [taken[1] - 64 * slope, slope]
    return out


def block(family: Any, dtype: torch.dtype, width: int, rows: int, seq: int) -> float:
    """Seconds of one block of a family, forward and back: that of two less that of one."""
    taken = []
    for layers in (1, 3):
        facts = {
            "vocab_size": 64,
            "d_model": width,
            "n_layers": layers,
            "n_heads": max(1, width // 64),
            "d_ff": 3 * width,
        }
        if family is qwen3:
            facts |= {"n_kv_heads": facts["n_heads"], "d_head": width // facts["n_heads"]}
        model = family.build(family.Config(max_len=max(seq, 8), dropout=0.0, **facts)).train().to(dtype)
        tokens = torch.randint(64, (rows, seq))

        def work(model: nn.Module = model, tokens: Tensor = tokens) -> None:
            model(tokens, documents=torch.ones_like(tokens), labels=tokens).losses.sum().backward()
            for parameter in model.parameters():
                parameter.grad = None

        taken.append(timed(work))
    return max(0.0, taken[1] - taken[0]) / 2


def head(dtype: torch.dtype) -> float:
    """Seconds a logit of the loss over 4096 words with the narrowest matrix."""
    weight = torch.randn(4096, 64, dtype=dtype, requires_grad=True)
    hidden = torch.randn(1024, 64, dtype=dtype, requires_grad=True)
    labels = torch.randint(4096, (1024,))
    return timed(passes(lambda: CrossEntropy.apply(hidden, weight, labels, None), hidden, weight)) / 4096 / 1024


def adamw() -> float:
    """Seconds a parameter: gradient made, its norm, the update."""
    table = nn.Embedding(8192, 512)
    optimizer = Optimizer(nn.ModuleDict({"stem": table}), build(TrainSettings, {"steps": 1}, "measure"))

    def work() -> None:
        table.weight.grad = torch.zeros_like(table.weight)
        torch.nn.utils.get_total_norm([table.weight.grad])
        optimizer.step(0.0)
        optimizer.clear()

    return timed(work) / table.weight.numel()


def muon() -> dict[str, float]:
    """Shorter side -> seconds a FLOP of the orthogonal update, all else of it included (`here.muon_flops`)."""
    out = {}
    for side, count in ((128, 8), (512, 4)):
        weights = {str(n): nn.Parameter(torch.randn(2 * side, side)) for n in range(count)}
        updater = Muon(weights, 0.01, 0.1)
        for weight in weights.values():
            weight.grad = torch.randn_like(weight)
        flops = count * 5 * (4 * side**2 * 2 * side + 2 * side**3)
        out[str(side)] = timed(updater.step, 3) / flops
    return out


def process(steps: int = 2) -> int:
    """Largest resident bytes of this process after it has trained almost nothing: interpreter, libraries, buffers."""
    config = qwen3.Config(
        vocab_size=64, d_model=32, n_layers=2, n_heads=1, n_kv_heads=1, d_head=32, d_ff=64, max_len=32
    )
    draw = np.random.default_rng(1)
    data = TokenData.of([draw.integers(64, size=16).tolist() for _ in range(8)])
    objective = CausalLM(Loader(Documents(data, 0, 16), 2, 16, 1), None)
    for dtype in ("float32", "bfloat16"):
        asked: dict[str, Any] = {"steps": steps, "rows": 2, "dtype": dtype, "track": [], "save_every": 1e9}
        settings = build(TrainSettings, asked, "measure")
        with tempfile.TemporaryDirectory() as folder:
            train(start(qwen3.build(config), objective, settings, Path(folder), log=lambda text: None))
    return peak_memory()


def bandwidth() -> float:
    """Bytes/s of adding two arrays that no cache holds, written to a third."""
    left, right = torch.ones(1 << 25), torch.ones(1 << 25)
    out = torch.empty_like(left)
    return 3 * left.nbytes / timed(lambda: torch.add(left, right, out=out))


def fresh() -> float:
    """Seconds a byte of memory that the system hands out: large tensors are new in every step."""
    size = 1 << 26
    return timed(lambda: torch.empty(size, dtype=torch.uint8).fill_(1)) / size


def measure() -> dict[str, Any]:
    """Everything, as `here.Machine` reads it."""
    threads = set_threads()
    out: dict[str, Any] = {"threads": threads, "process": process(), "bandwidth": bandwidth(), "fresh": fresh()}
    out |= {"adamw": adamw(), "muon": muon(), "formats": {}}
    for dtype in (torch.float32, *((torch.bfloat16,) if has_fast_bfloat16() else ())):
        out["formats"][str(dtype).removeprefix("torch.")] = {
            "linear": linear(dtype),
            "attention": attention(dtype),
            "gated": block(qwen3, dtype, REFERENCE, here.ROWS, here.LENGTH),
            "plain": block(gpt2, dtype, REFERENCE, here.ROWS, here.LENGTH),
            "overhead": block(qwen3, dtype, 32, 1, 8),
            "head": head(dtype),
        }
    return out


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
