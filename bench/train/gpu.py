"""One GPU: a decoder of 350M or 1.3B parameters, ours against transformers with torch.compile, in tokens a second.

    python bench/train/gpu.py [--sizes 350m,1.3b] [--runs 3] [--steps 30] [--rows 8] [--publish]

Written without a GPU and never run on one so far: its code was tried on a CPU with `--device cpu --sizes toy`, and
no number of it was published.

GPT-2's shape with blocks of 2,048 tokens and no dropout, bfloat16, fused AdamW, random tokens by Zipf's law, the sides
in turn as processes of their own. Ours is the training loop with the settings that it chooses itself; transformers'
model is in float32 under autocast, compiled, in a plain loop. The clock waits for the GPU at every step. Share: 6N + 12 L D
T operations a token over the best of bfloat16 products of 8192 x 8192, measured in the same process. The goal is half.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record
import throughput
import watched

PROTOCOL = " ".join(str(__doc__).split("\n\n")[3].split())
SIZES = {
    "toy": {"layers": 2, "heads": 2, "width": 64, "block": 128, "vocab": 1024},
    "350m": {"layers": 24, "heads": 16, "width": 1024, "block": 2048, "vocab": 50304},
    "1.3b": {"layers": 24, "heads": 32, "width": 2048, "block": 2048, "vocab": 50304},
}
SIDES = ("ours", "transformers compiled")
GOAL, WARM = 0.5, 10


def tokens(given: dict[str, Any]) -> np.ndarray:
    """Enough words for a few steps, int64 [N]."""
    chance = 1 / np.arange(1, given["vocab"] + 1)
    count = 4 * given["rows"] * given["block"] + 1
    return np.random.default_rng(1).choice(given["vocab"], count, p=chance / chance.sum())


def now(device: str) -> float:
    """Seconds, once the GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def ours(given: dict[str, Any]) -> list[float]:
    """Our loop; returns when each step was over."""
    from modelworks.data.loader import Documents, Loader
    from modelworks.data.tokens import TokenData
    from modelworks.models import gpt2
    from modelworks.objectives.causal_lm import CausalLM
    from modelworks.train.hooks import Hook
    from modelworks.train.loop import train
    from modelworks.train.run import Run, start
    from modelworks.train.settings import TrainSettings

    stamps = []

    class Stamp(Hook):
        def __call__(self, run: Run, logs: dict[str, float]) -> None:
            stamps.append(now(given["device"]))

    config = gpt2.Config(
        vocab_size=given["vocab"], d_model=given["width"], n_layers=given["layers"], n_heads=given["heads"],
        d_ff=4 * given["width"], max_len=given["block"], dropout=0.0,
    )  # fmt: skip
    loader = Loader(Documents(TokenData.of([tokens(given)]), 0, given["block"]), given["rows"], given["block"], seed=1)
    settings = TrainSettings(
        steps=given["steps"], rows=given["rows"], optimizer="adamw", learning_rate=3e-4, save_every=1e9, track=[]
    )
    with tempfile.TemporaryDirectory() as folder:
        run = start(gpt2.build(config).to(given["device"]), CausalLM(loader, None), settings, Path(folder))
        run.hooks.insert(0, Stamp())
        train(run)
    return stamps


def theirs(given: dict[str, Any]) -> list[float]:
    """transformers' GPT2LMHeadModel under torch.compile; returns when each step was over."""
    import transformers

    config = transformers.GPT2Config(
        vocab_size=given["vocab"], n_positions=given["block"], n_embd=given["width"], n_layer=given["layers"],
        n_head=given["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa",
        use_cache=False,
    )  # fmt: skip
    device = given["device"]
    model = torch.compile(transformers.GPT2LMHeadModel(config).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, fused=True)
    rows = torch.from_numpy(tokens(given)[:-1]).view(-1, given["rows"], given["block"]).to(device)
    stamps = []
    for step in range(given["steps"]):
        with torch.autocast(device, torch.bfloat16):
            loss = model(input_ids=rows[step % len(rows)], labels=rows[step % len(rows)]).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        stamps.append(now(device))
    return stamps


def one(given: dict[str, Any]) -> None:
    """A side, in its own process: what it reached goes to the file named."""
    from modelworks.base.device import matmul_peak

    device, side = given["device"], {"ours": ours, "transformers compiled": theirs}[given["side"]]
    peak = matmul_peak(torch.bfloat16, device, 8192 if device == "cuda" else 1024)
    stamps = side(given)
    memory = torch.cuda.max_memory_allocated() if device == "cuda" else 0
    per_step = given["rows"] * given["block"]
    rate = per_step * (len(stamps) - WARM) / (stamps[-1] - stamps[WARM - 1])
    found = {"tokens_per_second": rate, "share": rate * throughput.flops(given) / peak, "peak": peak, "memory": memory}
    Path(given["out"]).write_text(json.dumps(found), encoding="utf-8")


def measure(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both sides in turn."""
    runs = []
    for size in options.sizes.split(","):
        for number in range(options.runs):
            for side in SIDES[:: -1 if number % 2 else 1]:
                out = folder / f"{size}-{number}-{side.split()[0]}"
                given = {**SIZES[size], "side": side, "out": str(out), "device": options.device}
                given |= {"steps": options.steps, "rows": options.rows}
                command = [sys.executable, __file__, "--one", json.dumps(given)]
                watched.run(command, out.with_suffix(".log"), {"HF_HUB_OFFLINE": "1"}, 3600)
                runs.append({"size": size, "side": side, **json.loads(out.read_text(encoding="utf-8"))})
                print(f"{size}, {side}: {runs[-1]['tokens_per_second']:,.0f} tokens/s", flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="350m,1.3b", help=f"by comma, of: {', '.join(SIZES)}")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help=f"more than {WARM}, which are not measured")
    parser.add_argument("--rows", type=int, default=8, help="rows of 2,048 tokens in a step")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: only to try the code")
    parser.add_argument("--one", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--publish", action="store_true", help="keep the result, put its table into docs/benchmarks.md")
    options = parser.parse_args()
    if options.one:
        one(options.one)
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("There is no GPU here that torch can use.")
    with tempfile.TemporaryDirectory(prefix="gpu-") as name:
        runs = measure(Path(name), options)
    rows = []
    for size, side in dict.fromkeys((run["size"], run["side"]) for run in runs):
        own = [run for run in runs if (run["size"], run["side"]) == (size, side)]
        rates = record.spread([run["tokens_per_second"] for run in own], 0)
        share = statistics.median(run["share"] for run in own)
        memory = statistics.median(run["memory"] for run in own) / 1e9
        rows.append([size, side, rates, f"{share:.0%}", f"{memory:.1f}"])
    lines = record.table(["decoder", "who", "tokens/s", "share of peak", "memory GB"], rows)
    print(*lines, f"The goal is a share of {GOAL:.0%} for ours.", sep="\n")
    if options.publish:
        print(record.write("gpu", PROTOCOL, runs, {"goal": GOAL}))
        record.publish_table("gpu", lines)


if __name__ == "__main__":
    main()
