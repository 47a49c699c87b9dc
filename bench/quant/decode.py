"""Decoding by number format: tokens a second, bytes of weights, and how far the next-token distribution moves.

    python bench/quant/decode.py [--models gpt2,qwen3] [--formats fp32,bf16,int8,...] [--rounds 5] [--tiny] [--publish]

Models of random weights (the same in every format), one row. Writing: a prompt of 32 tokens is read, then 64 tokens are
read one at a time with a cache, all but the first timed. Reading: one pass over 512 tokens, the last logits wanted. All
formats of a model are in memory together and take turns, the order changes with every round; medians over rounds. Bytes
are those of parameters and lasting buffers as saved. KL (nats a token) and agreement of the likeliest next token are
against float32 on 256 random tokens: of random weights, so they show rounding and not what a trained model loses (that
is what `modelworks export --quant` prints). A format with +head has its head quantised as well.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record
import torch
from torch import Tensor, nn

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
FORMATS = "fp32,bf16,int8,int8-dynamic,int8-dynamic+head,int4,int4+head,nf4"


def build(name: str, tiny: bool) -> nn.Module:
    """A model of random weights: GPT-2's smallest, or 24 blocks of width 1024 in Qwen3's shape (0.35 billion)."""
    from modelworks.models import gpt2, qwen3

    torch.manual_seed(1)
    if name == "gpt2":
        config: Any = gpt2.PRESETS["gpt2"]
        small = {"n_layers": 2, "d_model": 128, "n_heads": 4, "vocab_size": 512}
        model = gpt2.build(config.model_copy(update=small) if tiny else config)
    else:
        config = qwen3.Config(
            vocab_size=512 if tiny else 32_000, d_model=128 if tiny else 1024, n_layers=2 if tiny else 24,
            n_heads=4 if tiny else 16, n_kv_heads=2 if tiny else 8, d_head=32 if tiny else 64,
            d_ff=320 if tiny else 2816, max_len=2048, tie_word_embeddings=False,
        )  # fmt: skip
        model = qwen3.build(config)
    with torch.no_grad():
        for weight in model.parameters():  # fresh matrices are zeros in places
            if weight.dim() > 1:
                weight.normal_(0.0, 0.02)
    return model.eval().requires_grad_(False)


def made(name: str, format: str, tiny: bool) -> nn.Module:
    """The model in a format."""
    from modelworks.quant.walk import quantise

    model, (method, _, head) = build(name, tiny), format.partition("+")
    if method in ("fp32", "bf16"):
        return model if method == "fp32" else model.to(torch.bfloat16)
    dice = torch.Generator().manual_seed(2)
    batches = [tokens(model, 4, 128, dice) for _ in range(4)] if "-gptq" in method or "-awq" in method else []
    quantise(model, method, head=head == "head", batches=batches, dtype=torch.bfloat16)
    return model


def tokens(model: nn.Module, rows: int, length: int, dice: torch.Generator) -> Tensor:
    words = model.stem.tokens.weight.shape[0]
    return torch.randint(words, (rows, length), generator=dice)


@torch.no_grad()
def writing(model: nn.Module, steps: int) -> float:
    """Tokens a second, one at a time."""
    given = tokens(model, 1, 32 + steps, torch.Generator().manual_seed(3))
    cache = model.new_cache(1, 32 + steps)
    model(given[:, :32], cache=cache, last_only=True)
    model(given[:, 32:33], cache=cache, last_only=True)
    started = time.perf_counter()
    for step in range(33, 32 + steps):
        model(given[:, step : step + 1], cache=cache, last_only=True)
    return (steps - 1) / (time.perf_counter() - started)


@torch.no_grad()
def reading(model: nn.Module, length: int) -> float:
    """Tokens a second, all at once."""
    given = tokens(model, 1, length, torch.Generator().manual_seed(4))
    started = time.perf_counter()
    model(given, last_only=True)
    return length / (time.perf_counter() - started)


@torch.no_grad()
def chances(model: nn.Module) -> Tensor:
    return model(tokens(model, 1, 256, torch.Generator().manual_seed(5))).logits.double().log_softmax(-1)[0]


def measure(name: str, formats: list[str], rounds: int, tiny: bool) -> list[dict[str, Any]]:
    """One record a format."""
    from modelworks.quant.walk import weight_bytes

    models = {format: made(name, format, tiny) for format in formats}
    exact = chances(models["fp32"] if "fp32" in models else made(name, "fp32", tiny))
    runs: dict[str, list[dict[str, float]]] = {format: [] for format in formats}
    steps, length = (8, 64) if tiny else (64, 512)
    for round_ in range(rounds + 1):  # the first warms up
        for format in formats[round_ % len(formats) :] + formats[: round_ % len(formats)]:
            found = {"writing": writing(models[format], steps), "reading": reading(models[format], length)}
            if round_:
                runs[format].append(found)
    out = []
    for format, model in models.items():
        there = chances(model)
        near = {
            "kl": (exact.exp() * (exact - there)).sum(-1).mean().item(),
            "agreement": (exact.argmax(-1) == there.argmax(-1)).double().mean().item(),
        }
        out.append({"model": name, "format": format, "bytes": weight_bytes(model), **near, "runs": runs[format]})
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="gpt2,qwen3")
    parser.add_argument("--formats", default=FORMATS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="sizes that take a second and mean nothing")
    parser.add_argument("--publish", action="store_true", help="keep the result and add its rows to docs/benchmarks.md")
    options = parser.parse_args()
    found, lines = [], []
    for name in options.models.split(","):
        found += measure(name, options.formats.split(","), options.rounds, options.tiny)
        gc.collect()
    for one in found:
        speeds = [record.spread([run[what] for run in one["runs"]], 0) for what in ("writing", "reading")]
        near = [f"{one['kl']:.1e}", f"{one['agreement']:.1%}"]
        cells = [one["model"], one["format"], f"{one['bytes'] / 1e6:,.0f} MB", *speeds, *near]
        lines.append(record.row([record.machine_words(record.machine()), record.commit(), *cells]))
        print(lines[-1])
    if options.publish:
        medians = {
            f"{one['model']} {one['format']}": statistics.median(run["writing"] for run in one["runs"]) for one in found
        }
        print(record.write("quant_decode", PROTOCOL, found, medians))
        for line in lines:
            record.publish("quant_decode", line)


if __name__ == "__main__":
    main()
