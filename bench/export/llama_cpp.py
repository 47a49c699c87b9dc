"""Models trained here, continued greedily by llama.cpp and by our own engine: how many tokens are the same.

    MODELWORKS_LLAMA=/path/to/a/python/with/llama_cpp  python bench/export/llama_cpp.py TEXT... [--publish]

Each preset is trained on TEXT (files or folders) for a few hundred steps with a byte-level BPE tokenizer, exported in
each number format, and given the same prompts, cut out of TEXT at even distances. llama.cpp keeps keys and values in
float32. Columns: prompts whose whole text is the same, tokens before the first that differs, the largest difference
of a log-probability among the ten likeliest words of each step. llama.cpp comes from its own environment:

    python -m venv llama && llama/bin/pip install llama-cpp-python        (or xllamacpp, which needs no compiler)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import record

from modelworks.recipes import by_hand, front
from modelworks.recipes.exports import _llama, gguf

PROTOCOL = "Greedy tokens of llama.cpp and of our engine after the same prompts; trained models, not random ones."
FAMILIES = {"llama-nano": "qwen2", "qwen3-nano": "qwen2", "qwen2-nano": "qwen2", "gpt2-nano": "gpt2"}
"""Preset -> how its tokenizer splits text."""


def trained(work: Path, texts: list[str], presets: list[str], steps: int) -> None:
    """A folder for each preset under `work`, each with its own tokenizer."""
    by_hand.do("collect", {"from": [f"files:{text}" for text in texts]}, work / "pages", 1)
    by_hand.do("prepare", {"from": str(work / "pages"), "steps": ["normalise", "split"]}, work / "corpus", 1)
    for pattern in {FAMILIES[preset] for preset in presets}:
        settings = {"from": str(work / "corpus"), "vocab_size": 4096, "pattern": pattern}
        by_hand.do("tokenizer", settings, work / f"tokens-{pattern}", 1)
    for preset in presets:
        settings = {
            "objective": "causal_lm", "model": preset, "data": str(work / "corpus"),
            "tokenizer": str(work / f"tokens-{FAMILIES[preset]}"), "max_len": 128, "rows": 8,
            "budget": {"steps": steps}, "track": [], "save_every": 0, "evaluate_every": 0,
        }  # fmt: skip
        by_hand.do("train", settings, work / preset, 1)


def prompts(texts: list[str], count: int, characters: int = 40) -> list[str]:
    """`count` pieces of the texts at even distances."""
    files = [f for text in texts for f in ([Path(text)] if Path(text).is_file() else sorted(Path(text).rglob("*.txt")))]
    whole = "\n".join(file.read_text(encoding="utf-8") for file in files)
    gap = max(1, (len(whole) - characters) // count)
    return [whole[start : start + characters] for start in range(gap // 2, len(whole) - characters, gap)][:count]


def compared(model: Path, folder: Path, dtype: str, asked: list[str], new_tokens: int) -> dict[str, Any]:
    """Export, continue each prompt alone, and count."""
    by_hand.do("export", {"model": str(model), "to": "gguf", "dtype": dtype, "new_tokens": 1}, folder, 1)
    ours = front.load(model, device="cpu", dtype="float32")
    found = [_llama.check(folder / gguf.gguf.FILE, ours, [prompt], new_tokens, dtype) for prompt in asked]
    return {
        "model": model.name, "format": dtype, "engine": found[0].engine, "prompts": len(found),
        "prompts_same": sum(one.same == one.tokens for one in found), "tokens": sum(one.tokens for one in found),
        "tokens_same": sum(one.same for one in found), "nats": max(one.nats for one in found),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", nargs="+", help="files or folders of .txt to train on and to take prompts from")
    parser.add_argument("--presets", nargs="+", default=list(FAMILIES), choices=list(FAMILIES))
    parser.add_argument("--dtypes", nargs="+", default=list(gguf.DTYPES), choices=list(gguf.DTYPES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=20)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--out", type=Path, help="where the models are kept (default: nowhere)")
    parser.add_argument("--publish", action="store_true", help="keep the result and put it into docs/benchmarks.md")
    options = parser.parse_args()
    if _llama.place() is None:
        raise SystemExit(f"there is no llama.cpp; {__doc__.strip().splitlines()[-1].strip()}, named in {_llama.PLACE}.")
    asked, runs = prompts(options.text, options.prompts), []
    with tempfile.TemporaryDirectory() as spare:
        work = options.out or Path(spare)
        trained(work, options.text, options.presets, options.steps)
        for preset in options.presets:
            for dtype in options.dtypes:
                runs.append(compared(work / preset, work / f"{preset}-{dtype}", dtype, asked, options.new_tokens))
    lines = [
        record.row([
            run["model"], run["format"], f"{run['prompts_same']} of {run['prompts']}",
            f"{run['tokens_same']:,} of {run['tokens']:,}", f"{run['nats']:.1e}", run["engine"], record.commit(),
        ])
        for run in runs
    ]  # fmt: skip
    print("\n".join(lines))
    if options.publish:
        print(record.write("llama_cpp", PROTOCOL, runs, {f"{run['model']} {run['format']}": run for run in runs}))
        record.publish("llama_cpp", "\n".join(lines))


if __name__ == "__main__":
    main()
