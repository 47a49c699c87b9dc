"""The plain GPT of char_baseline.py with its AdamW tuned as carefully as ours: one setting after the other, twice.

    python bench/train/tuned_baseline.py --tune [--steps 600]          settle the settings (below as TUNED)
    python bench/train/tuned_baseline.py [--steps 700] [--seeds 1,2,3]  loss and seconds with them, as char_lm.py counts

Model, rows and length of rows stay. Tuned: peak rate, second beta, decay, warm-up, schedule (cosine to a tenth, linear
to zero, constant then linear to zero), clip. A value is kept when the loss on windows held out of the training text
(`sweep.py`'s) is lower; the benchmark's own held-out text plays no part. One thread while tuning; the final runs are
processes of their own, timed from start to exit, on seeds that were not used here.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import char_baseline
import char_lm
import record
import sweep

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
START = {"rate": 1e-3, "beta2": 0.99, "decay": 0.1, "warmup": 0.05, "schedule": "cosine", "clip": 1.0}
GRID: dict[str, list[Any]] = {
    "rate": [1e-3, 2e-3, 4e-3, 8e-3],
    "schedule": ["cosine", "linear", "wsd"],
    "beta2": [0.99, 0.95, 0.98],
    "warmup": [0.05, 0.02, 0.1],
    "decay": [0.1, 0.0, 0.5],
    "clip": [1.0, 0.0],
}
TUNED = START | {"rate": 4e-3, "schedule": "wsd", "beta2": 0.98, "warmup": 0.02, "decay": 0.0}


def factor(kind: str, done: float, warmup: float) -> float:
    """Share of the peak rate after `done` of the run, warm-up included."""
    rise = min(1.0, done / warmup) if warmup else 1.0
    left = 1 - max(0.0, (done - warmup) / (1 - warmup))
    if kind == "cosine":
        return rise * (0.1 + 0.45 * (1 + math.cos(math.pi * (1 - left))))
    return rise * (left if kind == "linear" else min(1.0, left / 0.4))


def train(data: torch.Tensor, words: int, seed: int, steps: int, settings: dict[str, Any]) -> char_baseline.CharGPT:
    """A plain GPT trained on ids [N] with these settings of AdamW."""
    torch.manual_seed(seed)
    model = char_baseline.CharGPT(words)
    matrices = [p for p in model.parameters() if p.dim() == 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings["decay"]}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["rate"], betas=(0.9, settings["beta2"]), fused=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = settings["rate"] * factor(settings["schedule"], (step + 1) / (steps + 1), settings["warmup"])
        starts = torch.randint(len(data) - char_baseline.BLOCK, (char_baseline.BATCH,))
        rows = torch.stack([data[start : start + char_baseline.BLOCK + 1] for start in starts.tolist()])
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        if settings["clip"]:
            nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
    return model


def tune(text: str, steps: int, out: Path | None, rounds: int = 2) -> dict[str, Any]:
    """Settings found one after the other; every trial is printed."""
    learn, held, words = sweep.split(text)
    data, best, settings = torch.tensor(learn), math.inf, dict(START)
    seen: dict[str, float] = {}
    for _ in range(rounds):
        for name, values in GRID.items():
            for value in values:
                trial = settings | {name: value}
                key = json.dumps(trial)
                if key in seen:
                    continue
                seen[key] = loss = score(train(data, words, 11, steps, trial), held)
                line = json.dumps(trial | {"steps": steps, "loss": round(loss, 4)})
                print(line, flush=True)
                if out:
                    with open(out, "a", encoding="utf-8") as file:
                        file.write(line + "\n")
                if loss < best:
                    best, settings = loss, trial
    return settings


@torch.no_grad()
def score(model: char_baseline.CharGPT, held: list[int]) -> float:
    """Mean loss on the windows that `sweep.py` scores on."""
    spread = torch.linspace(0, len(held) - char_lm.WINDOW - 1, sweep.WINDOWS).long().tolist()
    rows = torch.stack([torch.tensor(held[at : at + char_lm.WINDOW + 1]) for at in spread])
    return float(F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()))


def alone(text: Path, out: Path, seed: int, steps: int) -> None:
    """What a timed process does: train with TUNED on a text and save."""
    characters = text.read_text(encoding="utf-8")
    alphabet = "".join(sorted(set(characters)))
    index = {character: number for number, character in enumerate(alphabet)}
    data = torch.tensor([index[character] for character in characters])
    char_baseline.save(out, train(data, len(alphabet), seed, steps, TUNED), alphabet)


def timed(text: str, seeds: str, steps: int) -> list[dict[str, Any]]:
    """Loss on the benchmark's held-out text and wall seconds, a process for each seed."""
    cut, runs = len(text) * 9 // 10, []
    with tempfile.TemporaryDirectory(prefix="tuned-") as name:
        folder = Path(name)
        (folder / "train.txt").write_text(text[:cut], encoding="utf-8")
        for seed in seeds.split(","):
            command = [sys.executable, __file__, "--alone", str(folder / "train.txt"), str(folder / seed)]
            seconds = char_lm.timed([*command, "--seeds", seed, "--steps", str(steps)], folder / f"{seed}.log")
            loss = char_lm.score_plain(folder / seed, text[cut:])
            runs.append({"who": "tuned", "seed": int(seed), "steps": steps, "loss": loss, "seconds": seconds})
            print(json.dumps(runs[-1]), flush=True)
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file, .gz or not (default: tiny Shakespeare)")
    parser.add_argument("--tune", action="store_true")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--out", type=Path, help="append the trials to this file as well")
    parser.add_argument("--alone", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--publish", action="store_true", help="keep the result and add its row to docs/benchmarks.md")
    options = parser.parse_args()
    if options.alone:
        return alone(*options.alone, int(options.seeds), options.steps)
    text = char_lm.text_of(options.data)
    if options.tune:
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        began = time.process_time()
        found = tune(text, options.steps, options.out)
        print(json.dumps({"tuned": found, "seconds": round(time.process_time() - began)}))
        return None
    runs = timed(text, options.seeds, options.steps)
    cells = [record.spread([run[key] for run in runs], digits) for key, digits in (("loss", 3), ("seconds", 1))]
    machine = record.machine_words(record.machine())
    line = record.row([machine, record.commit(), options.seeds, options.steps, *cells])
    print(line)
    if options.publish:
        summary = {key: statistics.median(run[key] for run in runs) for key in ("loss", "seconds")}
        print(record.write("tuned_baseline", PROTOCOL, runs, summary | {"settings": TUNED}))
        record.publish("tuned_baseline", line)
    return None


if __name__ == "__main__":
    main()
