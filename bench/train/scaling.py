"""Weak and strong scaling of training to 2 processes on this machine, each process with one thread.

    .venv/bin/python bench/train/scaling.py                  # about 6 minutes on 2 quiet cores
    .venv/bin/python bench/train/scaling.py --publish

The same training run (`modelworks train` through `--devices`) of a 6-layer model, 384 wide, rows of 256 characters:

    one      1 process, `rows` rows
    strong   2 processes that share those rows
    weak     2 processes with `rows` rows each

Speed is what a run logs about itself (median tokens a second of the logged windows, the first left out). Repeats are
interleaved. Efficiency is speed over speed of `one`, over 2. What confounds it here: two processes share the memory
bandwidth, the last cache and the heat of one processor, and messages (gloo, over the loopback) are copied by the same
cores that compute. So a row `apart` runs two strangers at once, each like `one`, with no message between them: what
two processes can do here at most. Each process has one thread in all rows; 1 process with 2 threads is shown beside
them, for it is what a user has without `--devices`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import record

PROTOCOL = "6 x 384, rows of 256 characters, AdamW, float32, 1 thread a process; median tokens/s of logged windows."
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew soup and sing of rivers of light".split()
MODEL = {"family": "qwen3", "d_model": 384, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "d_head": 64, "d_ff": 1024}


def program(*words: object) -> list[str]:
    return [sys.executable, "-m", "modelworks", *map(str, words)]


def quiet(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


def corpus(folder: Path) -> tuple[Path, Path]:
    """A corpus of random sentences and its tokenizer."""
    dice = random.Random(1)
    (folder / "text").mkdir()
    for number in range(40):
        text = " ".join(dice.choice(WORDS) for _ in range(4000))
        (folder / "text" / f"{number:02d}.txt").write_text(f"{text}.\n", encoding="utf-8")
    quiet(program("collect", f"files:{folder / 'text'}", "--out", folder / "pages"))
    quiet(program("prepare", folder / "pages", "--steps", "normalise", "split", "--out", folder / "corpus"))
    quiet(program("tokenizer", folder / "corpus", "--vocab-size", 300, "--out", folder / "tokens"))
    return folder / "corpus", folder / "tokens"


def start(out: Path, data: tuple[Path, Path], rows: int, devices: int, threads: int, steps: int) -> subprocess.Popen:
    model = [word for name, value in MODEL.items() for word in (f"--model.{name}", value)]
    settings = ["--rows", rows, "--steps", steps, "--max-len", 256, "--log-every", 5, "--dtype", "float32"]
    settings += ["--optimizer", "adamw", "--save-every", 1e9, "--device", "cpu", "--track", "[]"]
    words = ["train", "causal_lm", *model, "--data", data[0], "--tokenizer", data[1], *settings, "--out", out]
    env = {**os.environ, "MODELWORKS_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
    command = program(*words, "--devices", devices)
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def speed(child: subprocess.Popen, out: Path) -> float:
    """Tokens a second of a run that `start` began."""
    _, said = child.communicate()
    if child.returncode:
        raise SystemExit(f"a run failed:\n{said[-2000:]}")
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    rates = [line["tokens_per_second"] for line in lines if "tokens_per_second" in line]
    return statistics.median(rates[1:] or rates)


WAYS = {  # name -> (devices, threads, how many runs at once, rows as a multiple)
    "one": (1, 1, 1, 1),
    "strong": (2, 1, 1, 1),
    "weak": (2, 1, 1, 2),
    "apart": (1, 1, 2, 1),
    "one, 2 threads": (1, 2, 1, 1),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--publish", action="store_true", help="keep the result and put its table in docs/benchmarks.md"
    )
    options = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="scaling-") as name:
        folder = Path(name)
        data = corpus(folder)
        for repeat in range(options.repeats):
            order = list(WAYS.items())
            for way, (devices, threads, at_once, times) in order[:: -1 if repeat % 2 else 1]:
                outs = [folder / f"{way}-{repeat}-{n}".replace(" ", "").replace(",", "-") for n in range(at_once)]
                rows = options.rows * times
                children = [start(out, data, rows, devices, threads, options.steps) for out in outs]
                rate = sum(speed(child, out) for child, out in zip(children, outs, strict=True))
                runs.append({"way": way, "repeat": repeat, "rows": rows, "tokens_per_second": rate})
                print(f"{way}: {rate:,.0f} tokens/s", flush=True)
    rates = {way: [run["tokens_per_second"] for run in runs if run["way"] == way] for way in WAYS}
    base = statistics.median(rates["one"])
    processes = {way: devices * at_once for way, (devices, _, at_once, _) in WAYS.items()}
    summary = {
        way: {"tokens_per_second": statistics.median(values),
              "efficiency": statistics.median(values) / base / processes[way]}
        for way, values in rates.items()
    }  # fmt: skip
    lines = record.table(
        ["way", "processes x threads", "rows in a step", "tokens/s", "efficiency"],
        [
            [way, f"{processes[way]} x {threads}", options.rows * times * at_once, record.spread(rates[way], 0),
             f"{summary[way]['efficiency']:.0%}" if threads == 1 else "-"]
            for way, (_, threads, at_once, times) in WAYS.items()
        ],
    )  # fmt: skip
    lines.append(f"\n{record.machine_words(record.machine())}, commit {record.commit()}, {options.repeats} repeats.")
    print("\n".join(lines))
    if options.publish:
        print(record.write("scaling", PROTOCOL, runs, summary))
        record.publish_table("scaling", lines)


if __name__ == "__main__":
    main()
