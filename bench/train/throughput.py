"""Training speed and memory: ours against transformers' Trainer, LitGPT and plain PyTorch, on the same tokens.

    python bench/train/throughput.py --shape small|char|gpt2 [--runs 3] [--only ours,litgpt] [--steps N] [--publish]
    python bench/train/throughput.py --prepare                     first: LitGPT's environment (two minutes)

Each side trains a GPT of one shape as a process of its own with the same threads, batch and AdamW, dropout 0, the sides
in turn; every round begins one side further. Tokens a second: over all steps but the first few, from one step's end to
another's, so loading, logging every tenth step and clipping are in it, and start, compiling, evaluation and saving are
not. Start-up: from the process's start until training is called. First step: from then until it is done, with whatever
was compiled and tried for it; the first round compiles anew, later ones find its cache. Memory: the most that the
process and its children held, ever (the goal is about this one) and in the measured steps. Peak: bfloat16 products of
1024 x 1024 as base.device measures them, once a round. Work a token: 6N + 12 L D T as nanoGPT counts it, N without
position tables. Ratios are medians over rounds of tokens a second within the same round. Text: tiny Shakespeare's
characters; for gpt2 words drawn by Zipf's law.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import char_lm
import environments
import record
import watched

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
PEERS = Path(__file__).with_name("peers")
LIMIT = 1800.0  # seconds that one side may take in one round

SHAPES: dict[str, dict[str, int]] = {
    "small": {"layers": 4, "heads": 4, "width": 128, "block": 64, "batch": 12, "vocab": 65},
    "char": {"layers": 6, "heads": 6, "width": 384, "block": 256, "batch": 32, "vocab": 65},
    "gpt2": {"layers": 12, "heads": 12, "width": 768, "block": 512, "batch": 4, "vocab": 50304},
}
STEPS = {"small": (20, 220), "char": (2, 10), "gpt2": (2, 7)}  # unmeasured ones, all
SIDES: dict[str, dict[str, Any]] = {
    "ours": {"script": "ours.py", "precision": "auto"},
    "trainer bf16": {"script": "hf_trainer.py", "precision": "bf16"},
    "trainer bf16 compiled": {"script": "hf_trainer.py", "precision": "bf16", "compile": True},
    "trainer fp32": {"script": "hf_trainer.py", "precision": "fp32"},
    "litgpt bf16-mixed": {"script": "lit_gpt.py", "precision": "bf16", "environment": "litgpt"},
    "plain fp32": {"script": "plain.py", "precision": "fp32"},
    "plain autocast": {"script": "plain.py", "precision": "bf16"},
}
TARGETS: dict[str, dict[str, float]] = {
    "small": {"best": 1.3},
    "char": {"litgpt bf16-mixed": 1.15, "trainer bf16": 1.25, "plain fp32": 2.1, "share": 0.66},
    "gpt2": {"litgpt bf16-mixed": 1.2, "trainer bf16": 1.5, "share": 0.68, "memory": 0.75},
}


def flops(shape: dict[str, int]) -> int:
    """Floating-point operations to train on one token, as nanoGPT counts them (its `estimate_mfu`)."""
    width, layers = shape["width"], shape["layers"]
    weights = shape["vocab"] * width + layers * (12 * width**2 + 13 * width) + 2 * width
    return 6 * weights + 12 * layers * width * shape["block"]


def write_tokens(shape: str, path: Path) -> None:
    """The ids that everybody trains on, int64 [N]."""
    vocab = SHAPES[shape]["vocab"]
    if shape == "gpt2":
        chance = 1 / np.arange(1, vocab + 1)
        np.save(path, np.random.default_rng(1).choice(vocab, 200_000, p=chance / chance.sum()))
        return
    text = char_lm.text_of(None)
    number = {character: place for place, character in enumerate(sorted(set(text)))}
    np.save(path, np.array([number[character] for character in text], dtype=np.int64))


def peak(threads: int) -> float:
    """bfloat16 FLOP/s of this machine now."""
    import torch

    from modelworks.base.device import matmul_peak, set_threads

    set_threads(threads)
    return float(matmul_peak.__wrapped__(torch.bfloat16))


def one(side: str, number: int, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """One side in one round."""
    about = SIDES[side]
    name = side.replace(" ", "-")
    shape = SHAPES[options.shape]
    unmeasured, steps = options.counts
    scratch, out, given = (
        folder / f"{name}-{number}",
        folder / f"{name}-{number}.json",
        folder / f"{name}-{number}.task",
    )
    scratch.mkdir()
    task = {
        **shape, "data": str(folder / "tokens.npy"), "steps": steps, "threads": options.threads, "out": str(out),
        "precision": about["precision"], "scratch": str(scratch), "launched": time.monotonic(),
        "compile": about.get("compile", False), "settings": options.set if side == "ours" else {},
    }  # fmt: skip
    given.write_text(json.dumps(task), encoding="utf-8")
    environment = about.get("environment")
    python = environments.python(environment) if environment else sys.executable
    around = {
        "OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / f"compiled-{name}"), "MODELWORKS_CACHE": str(folder / f"known-{name}"),
    }  # fmt: skip
    seen = watched.run([str(python), str(PEERS / about["script"]), str(given)], out.with_suffix(".log"), around, LIMIT)
    clock = json.loads(out.read_text(encoding="utf-8"))
    stamps = clock["stamps"]
    if len(stamps) != steps:
        raise SystemExit(f"{side}: made {len(stamps)} steps of {steps}.")
    rate = shape["batch"] * shape["block"] * (steps - unmeasured) / (stamps[-1] - stamps[unmeasured - 1])
    found = {
        "side": side, "round": number, "tokens_per_second": rate, "startup": clock["begun"] - clock["launched"],
        "first_step": stamps[0] - clock["begun"], "peak_bytes": seen.peak_bytes, "children": seen.children,
        "peak_alone_bytes": seen.peak_alone_bytes,
        "steady_bytes": seen.peak_between(stamps[unmeasured - 1], stamps[-1]), "seconds": seen.seconds, "loss": clock["loss"],
        "facts": clock["facts"],
    }  # fmt: skip
    print(
        f"{side}: {rate:,.0f} tokens/s, {seen.peak_bytes / 1e6:,.0f} MB, first step {found['first_step']:.1f} s, "
        f"loss {clock['loss']:.2f}, {seen.seconds:.0f} s in all",
        flush=True,
    )
    return found


def measure(sides: list[str], folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides in turn, as many rounds as were asked for."""
    write_tokens(options.shape, folder / "tokens.npy")
    runs = []
    for number in range(options.runs):
        best = peak(options.threads)
        print(f"round {number + 1}: peak {best / 1e9:.0f} GFLOP/s", flush=True)
        for side in sides[number % len(sides) :] + sides[: number % len(sides)]:
            run = one(side, number, folder, options)
            runs.append(run | {"share": run["tokens_per_second"] * flops(SHAPES[options.shape]) / best, "peak": best})
    return runs


def summary(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each side: its values over the rounds, and the ratios of ours to it."""
    rounds: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for run in sorted(runs, key=lambda run: run["round"]):
        rounds[run["side"]].append(run)
    found: dict[str, dict[str, Any]] = {}
    for side, values in rounds.items():
        found[side] = {
            key: [run[key] for run in values]
            for key in ("tokens_per_second", "share", "peak_bytes", "steady_bytes", "startup", "first_step")
        }
        if "ours" in rounds:
            both = zip(rounds["ours"], values, strict=True)
            found[side]["ours_is"] = [a["tokens_per_second"] / b["tokens_per_second"] for a, b in both]
    return found


def rows(found: dict[str, dict[str, Any]]) -> list[list[str]]:
    """The table's rows."""
    out = []
    for side, values in found.items():
        first, *later = values["first_step"]
        again = f" / {statistics.median(later):.1f}" if later else ""
        out.append(
            [
                side,
                record.spread(values["tokens_per_second"], 0),
                f"{record.spread(values['ours_is'])}" if "ours_is" in values and side != "ours" else "",
                f"{statistics.median(values['share']):.0%}",
                " / ".join(f"{statistics.median(values[k]) / 1e6:,.0f}" for k in ("peak_bytes", "steady_bytes")),
                f"{statistics.median(values['startup']):.1f}",
                f"{first:.1f}{again}",
            ]
        )
    return out


def verdicts(shape: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """The goals and what came of them, a sentence each."""
    out = []
    others = {side: values for side, values in found.items() if side != "ours"}
    for what, goal in TARGETS[shape].items():
        if what in ("best", "memory") and not others:
            continue
        if what == "share":
            value, words = statistics.median(found["ours"]["share"]), f"share of peak at least {goal:.0%}"
        elif what == "memory":
            names = [side for side in others if side.startswith(("litgpt", "trainer bf16"))]
            least = min((statistics.median(others[side]["peak_bytes"]) for side in names), default=float("nan"))
            value = statistics.median(found["ours"]["peak_bytes"]) / least
            words = f"memory at most {goal} of the better of LitGPT and Trainer"
        elif what == "best":
            value = min((statistics.median(values["ours_is"]) for values in others.values()), default=float("nan"))
            words = f"at least {goal} times the best of the others"
        elif what in others:
            value, words = statistics.median(others[what]["ours_is"]), f"at least {goal} times {what}"
        else:
            continue
        met = value <= goal if what == "memory" else value >= goal
        out.append(f"{'met' if met else 'NOT MET'}: {words}: {value:.2f}")
    return out


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="char")
    parser.add_argument("--runs", type=int, default=3, help="rounds (small: take 5)")
    parser.add_argument("--steps", type=int, help="all steps of a side; a few are only a try")
    parser.add_argument("--only", default=",".join(SIDES), help="which sides, by comma; the first word is enough")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our training")
    parser.add_argument("--keep", type=Path, help="a folder for logs and clocks (default: one that is deleted)")
    parser.add_argument("--prepare", action="store_true", help="make the environments that peers need, and end")
    parser.add_argument("--publish", action="store_true", help="keep the result, put its table into docs/benchmarks.md")
    options = parser.parse_args()
    import yaml

    options.set = {key: yaml.safe_load(value) for key, value in (pair.split("=", 1) for pair in options.set)}
    unmeasured, steps = STEPS[options.shape]
    options.counts = (unmeasured, max(unmeasured + 1, options.steps or steps))
    return options


def main() -> None:
    options = parse()
    if options.prepare:
        for name in environments.PACKAGES:
            print(environments.make(name))
        return
    wanted = {part.strip() for part in options.only.split(",")}
    sides = [side for side in SIDES if wanted & {side, side.split()[0]}]
    for side in list(sides):
        environment = SIDES[side].get("environment")
        if environment and environments.python(environment) is None:
            print(f"{side} is left out: there is no environment for it; --prepare makes one.")
            sides.remove(side)
    with tempfile.TemporaryDirectory(prefix="throughput-") as name:
        folder = options.keep or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        runs = measure(sides, folder, options)
    found = summary(runs)
    head = [
        "who",
        "tokens/s",
        "ours is times",
        "share of peak",
        "memory MB, in all / steps",
        "start-up s",
        "first step s, new / again",
    ]
    lines = record.table(head, rows(found))
    print(*lines, sep="\n")
    goals = verdicts(options.shape, found) if "ours" in found else []
    print(*goals, sep="\n")
    if options.publish:
        facts = {"sides": found, "goals": goals, "shape": SHAPES[options.shape], "settings": options.set}
        print(record.write(f"throughput_{options.shape}", PROTOCOL, runs, facts))
        where = f"{record.machine_words(record.machine())}, {options.threads} threads; commit {record.commit()}; "
        where += f"{options.runs} rounds; peak {statistics.median(r['peak'] for r in runs) / 1e9:.0f} GFLOP/s"
        record.publish_table(f"throughput_{options.shape}", [*lines, "", f"{where}.", "", *goals])


if __name__ == "__main__":
    main()
