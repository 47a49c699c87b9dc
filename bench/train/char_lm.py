"""Characters of one text: the plain GPT of char_baseline.py against `modelworks run char-lm`, side by side.

    python bench/train/char_lm.py [--data FILE] [--seeds 1,2,3] [--publish]

Both get the first nine tenths of the text and nothing else, as processes of their own, in turn (the order changes
with every seed), and are timed from start to exit: ours with whatever the recipe does besides training. Both are then
scored here on the same windows of 64 characters that cover the last tenth, each character predicted once.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import char_baseline
import record

Logits = Callable[[Tensor], Tensor]
PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
WINDOW = char_baseline.BLOCK


def text_of(path: Path | None) -> str:
    """The text of a file, packed or not; by default tiny Shakespeare from MODELWORKS_DATA."""
    if path is None:
        folder = os.environ.get("MODELWORKS_DATA")
        if not folder:
            raise SystemExit("Name a text with --data, or set MODELWORKS_DATA to the folder of data sets.")
        path = Path(folder) / "tinyshakespeare" / "input.txt.gz"
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return data.decode("utf-8")


def windows(ids: list[int], size: int) -> list[Tensor]:
    """Pieces of size + 1 that overlap by one, so that every character but the first is predicted once."""
    pieces = [torch.tensor(ids[start : start + size + 1]) for start in range(0, len(ids) - 1, size)]
    return [piece for piece in pieces if len(piece) > 1]


@torch.no_grad()
def loss(logits: Logits, ids: list[int], size: int = WINDOW) -> float:
    """Mean cross-entropy in nats a character over windows of `size`."""
    pieces = windows(ids, size)
    total, count = 0.0, 0
    for length in {len(piece) for piece in pieces}:
        same = torch.stack([piece for piece in pieces if len(piece) == length])
        for batch in same.split(256):
            out = logits(batch[:, :-1]).float()
            total += F.cross_entropy(out.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum").item()
            count += batch[:, 1:].numel()
    return total / count


def score_plain(folder: Path, held_out: str) -> float:
    model, alphabet = char_baseline.load(folder)
    index = {character: number for number, character in enumerate(alphabet)}
    return loss(model, [index[character] for character in held_out if character in index])


def model_folder(out: Path) -> Path:
    """The newest model that a recipe's run made."""
    found = [path.parent for path in out.glob("*/model.safetensors") if not path.parent.name.startswith(".")]
    if not found:
        raise SystemExit(f"{out}: the run left no model.safetensors.")
    return max(found, key=lambda path: (path / "model.safetensors").stat().st_mtime)


def score_ours(folder: Path, held_out: str) -> float:
    import modelworks as mw

    model = mw.load(str(folder))
    ids = model.tokenizer.encode(held_out)
    if len(ids) != len(held_out):
        raise SystemExit(f"{folder}: its tokenizer does not count in characters ({len(ids)} of {len(held_out)}).")
    return loss(model.logits, ids)


def timed(command: list[str], log: Path) -> float:
    """Wall seconds of a process. Raises SystemExit with the end of its output when it fails."""
    start = time.perf_counter()
    with open(log, "w", encoding="utf-8") as output:
        done = subprocess.run(command, stdout=output, stderr=subprocess.STDOUT)
    took = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return took


def one(who: str, seed: int, folder: Path, train: Path, held_out: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train and score one of the two with one seed."""
    out = folder / f"{who}-{seed}"
    if who == "plain":
        script = Path(__file__).with_name("char_baseline.py")
        command = [
            sys.executable,
            str(script),
            str(train),
            str(out),
            "--seed",
            str(seed),
            "--steps",
            str(options.steps),
        ]
    else:
        program = str(Path(sys.executable).with_name("modelworks"))
        settings = [f"data={train}", f"seed={seed}", *options.set]
        command = [program, "run", "char-lm", "--out", str(out)]
        command += [word for setting in settings for word in ("--set", setting)]
    seconds = timed(command, folder / f"{who}-{seed}.log")
    value = score_plain(out, held_out) if who == "plain" else score_ours(model_folder(out), held_out)
    print(f"{who}, seed {seed}: loss {value:.4f}, {seconds:.1f} s", flush=True)
    return {"who": who, "seed": seed, "loss": value, "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file, .gz or not (default: tiny Shakespeare)")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", choices=["plain", "ours"], help="run one of the two")
    parser.add_argument("--steps", type=int, default=char_baseline.STEPS, help="of the plain one; less is only a try")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our recipe")
    parser.add_argument("--publish", action="store_true", help="keep the result and add its row to docs/benchmarks.md")
    options = parser.parse_args()
    text = text_of(options.data)
    cut = len(text) * 9 // 10
    runs = []
    with tempfile.TemporaryDirectory(prefix="char-lm-") as name:
        folder = Path(name)
        train = folder / "train.txt"
        train.write_text(text[:cut], encoding="utf-8")
        for number, seed in enumerate(int(part) for part in options.seeds.split(",")):
            for who in ["plain", "ours"][:: -1 if number % 2 else 1]:
                if options.only in (None, who):
                    runs.append(one(who, seed, folder, train, text[cut:], options))
    summary = {
        who: {key: statistics.median(run[key] for run in runs if run["who"] == who) for key in ("loss", "seconds")}
        for who in dict.fromkeys(run["who"] for run in runs)
    }
    uniform = math.log(len(set(text)))
    print(json.dumps({**summary, "uniform guess": {"loss": uniform}}, indent=2))
    if options.only:
        return
    share = summary["ours"]["seconds"] / summary["plain"]["seconds"]
    values = {(who, key): [r[key] for r in runs if r["who"] == who] for who in summary for key in ("loss", "seconds")}
    cells = [
        record.spread(values[who, key], 3 if key == "loss" else 1)
        for who in ("plain", "ours")
        for key in ("loss", "seconds")
    ]
    line = record.row([record.machine_words(record.machine()), record.commit(), options.seeds, *cells, f"{share:.0%}"])
    print(line)
    if options.publish:
        print(record.write("char_lm", PROTOCOL, runs, {**summary, "share_of_time": share, "uniform_loss": uniform}))
        record.publish("char_lm", line)


if __name__ == "__main__":
    main()
