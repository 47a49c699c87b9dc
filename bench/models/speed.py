"""Our classes against transformers' own: the same weights, threads and format, a pass forward and a step of training.

    python bench/models/speed.py [--families llama,gpt2] [--runs 5] [--compile] [--tiny] [--publish]

A model of `transformers` (attention: sdpa) is built, saved, and opened by ours. Both then run the same batch in turn, and the order
changes with every run. Forward: all logits (or hidden states) without gradients. Training: forward with labels, loss,
backward. A ratio is the median over runs of their seconds divided by ours in the same run, above 1 where we are faster.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

from modelworks.hub import directory

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {"class": "LlamaForCausalLM", "config": "llama", "batch": (4, 256)},
    "qwen3": {"class": "Qwen3ForCausalLM", "config": "qwen3", "batch": (4, 256)},
    "gpt2": {"class": "GPT2LMHeadModel", "config": "gpt2", "batch": (4, 256)},
    "bert": {"class": "BertForMaskedLM", "config": "bert", "batch": (8, 128)},
    "vit": {"class": "ViTForImageClassification", "config": "vit", "batch": (8,)},
}
GATED = {
    "vocab_size": 32_000, "hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "head_dim": 64, "intermediate_size": 1408, "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}  # fmt: skip
PLAIN = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": GATED,
    "qwen3": GATED,
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": PLAIN,
    "vit": PLAIN | {"num_labels": 1000},
}
TINY = {"gpt2": {"n_layer": 2}, "vit": {"num_hidden_layers": 2}, "others": {"num_hidden_layers": 2}}


def pair(family: str, dtype: torch.dtype, tiny: bool) -> tuple[Any, Any]:
    """Theirs, and ours with the same weights."""
    import transformers

    settings = CONFIGS[family] | (TINY.get(family, TINY["others"]) if tiny else {})
    config = transformers.AutoConfig.for_model(SHAPES[family]["config"], **settings)
    config._attn_implementation = "sdpa"
    theirs = getattr(transformers, SHAPES[family]["class"])(config).to(dtype)
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = directory.load(folder).model
    return theirs, ours


def batch(family: str, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    dice = torch.Generator().manual_seed(1)
    rows, *rest = SHAPES[family]["batch"]
    if family == "vit":
        pixels = torch.randn(rows, 3, config.image_size, config.image_size, generator=dice).to(dtype)
        return {"pixels": pixels, "labels": torch.randint(1000, (rows,), generator=dice)}
    tokens = torch.randint(1, config.vocab_size, (rows, *rest), generator=dice)
    labels = tokens.clone()
    if family == "bert":  # 15 % of the words are asked for
        labels[torch.rand(labels.shape, generator=dice) > 0.15] = -100
    return {"tokens": tokens, "labels": labels}


def jobs(family: str, theirs: Any, ours: Any, given: dict[str, Tensor]) -> dict[str, dict[str, Callable[[], Any]]]:
    """What is timed, by kind of work and by side."""
    labels = given["labels"]
    first = given.get("tokens", given.get("pixels"))
    named = {"pixel_values" if family == "vit" else "input_ids": first}
    shifted = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100) if family not in ("bert", "vit") else labels
    counted = int((shifted != -100).sum())

    def their_step() -> None:
        theirs(**named, labels=labels).loss.backward()
        theirs.zero_grad(set_to_none=True)

    def our_step() -> None:
        (ours(first, labels=shifted).losses.sum() / counted).backward()
        ours.zero_grad(set_to_none=True)

    def quiet(model: Any, **inputs: Any) -> Any:
        with torch.no_grad():
            return model(**inputs).logits

    return {
        "forward": {"theirs": lambda: quiet(theirs, **named), "ours": lambda: quiet(ours, tokens=first)},
        "training": {"theirs": their_step, "ours": our_step},
    }


def measure(sides: dict[str, Callable[[], Any]], runs: int) -> list[dict[str, float]]:
    """Seconds of each side in each run, after two that do not count."""
    found = []
    for number in range(-2, runs):
        order = list(sides) if number % 2 else list(sides)[::-1]
        taken = {}
        for side in order:
            start = time.perf_counter()
            sides[side]()
            taken[side] = time.perf_counter() - start
        if number >= 0:
            found.append(taken)
    return found


def agree(family: str, sides: dict[str, Callable[[], Any]], dtype: torch.dtype) -> float:
    gap = (sides["theirs"]().float() - sides["ours"]().float()).abs().max().item()
    if gap > (1e-3 if dtype == torch.float32 else 0.5):
        raise SystemExit(f"{family}: the two differ by {gap:.1e}; nothing is timed.")
    return gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(SHAPES))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    parser.add_argument("--compile", action="store_true", help="both sides through torch.compile as well")
    parser.add_argument("--tiny", action="store_true", help="two layers and few words: a try, not a measurement")
    parser.add_argument("--publish", action="store_true", help="keep the result, put the table into docs/benchmarks.md")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    runs, rows = [], []
    for family in options.families.split(","):
        for dtype in (getattr(torch, name) for name in options.dtypes.split(",")):
            theirs, ours = pair(family, dtype, options.tiny)
            given = batch(family, theirs.config, dtype)
            for how in ("eager", "compiled") if options.compile else ("eager",):
                if how == "compiled":
                    theirs, ours = torch.compile(theirs), torch.compile(ours)
                theirs.eval(), ours.eval()
                work = jobs(family, theirs, ours, given)
                agree(family, work["forward"], dtype)
                theirs.train(), ours.train()
                for kind, sides in work.items():
                    taken = measure(sides, options.runs)
                    ratios = [one["theirs"] / one["ours"] for one in taken]
                    name = str(dtype).removeprefix("torch.")
                    runs.append({"family": family, "dtype": name, "how": how, "work": kind, "seconds": taken})
                    middle = {side: statistics.median(one[side] for one in taken) for side in sides}
                    ratio = record.spread(ratios)
                    rows.append([family, name, how, kind, f"{middle['theirs']:.3f}", f"{middle['ours']:.3f}", ratio])
                    print(record.row(rows[-1]), flush=True)
            torch.compiler.reset()
    if options.publish:
        head = ["family", "format", "how", "work", "theirs, s", "ours, s", "times as fast"]
        print(record.write("models_speed", PROTOCOL, runs, {"rows": rows, "threads": torch.get_num_threads()}))
        record.publish_table("models_speed", record.table(head, rows))


if __name__ == "__main__":
    main()
