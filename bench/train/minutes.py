"""English and Chinese in so many minutes: bits a byte of ours, of a 5-gram and of transformers' Trainer.

    python bench/train/minutes.py [--language english|chinese|both] [--minutes 15] [--sides ours,5-gram,trainer]
                                  [--set KEY=VALUE] [--publish]

The recipe `lm` collects, cleans, splits and learns a byte-level BPE of 8,192 tokens on the training part; its tokens are
what everybody trains on, and its test documents what everybody is scored on: the sum of -log2 of all their tokens, ends
included, over their UTF-8 bytes. Ours: that recipe's training with the settings below; its budget is the number of
steps that fit by the speed of a trial of 40, and all of its process counts, from start to exit. 5-gram: modified
Kneser-Ney, interpolated, exact (modelworks.evaluate.ngram). Trainer: GPT2LMHeadModel as wide and as large as ours with
TrainingArguments' defaults; only its training counts. Both neural models read windows of 256 tokens that overlap by
half. The same threads; one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import heldout
import record
import texts
import watched

PROTOCOL = " ".join(str(__doc__).split("\n\n")[2].split())
VOCAB, BLOCK, TRIAL, TINY_TRIAL = 8192, 256, 40, 5
SHAPE = {"preset": "qwen3-micro", "d_model": 256, "n_layers": 6, "n_heads": 4, "n_kv_heads": 2, "d_ff": 704}
TINY = {"preset": "qwen3-micro", "d_model": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_ff": 128}
OURS = {"max_len": BLOCK, "rows": 16, "evaluate_every": 0, "track": []}
SIDES = ("5-gram", "ours", "trainer", "trainer tuned")


def recipe(folder: Path, options: argparse.Namespace, name: str, *words: str) -> watched.Watched:
    """`modelworks run lm` on the documents of a folder, with further words of the command line."""
    program = str(Path(sys.executable).with_name("modelworks"))
    settings = [f"data={folder / 'documents.jsonl'}", f"seed={options.seed}", f"stages.tokens.vocab_size={VOCAB}"]
    settings += [f"stages.model.{key}={json.dumps(value)}" for key, value in {"model": options.model, **OURS}.items()]
    settings += options.set
    command = [program, "run", "lm", "--out", str(folder / "run"), *words]
    command += [word for setting in settings for word in ("--set", setting)]
    return watched.run(command, folder / f"{name}.log", _threads(options), 3 * options.seconds + 1800)


def prepare(language: str, folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Tokens of the training and of the test documents, as the recipe makes them, also where the Trainer reads them."""
    from modelworks.data.tokenizer import Tokenizer
    from modelworks.data.tokens import TokenData

    folder.mkdir(parents=True, exist_ok=True)
    documents = texts.write(language, folder / "documents.jsonl")
    recipe(folder, options, "prepare", "--until", "tokens")
    made = (folder / "run" / "tokens").resolve()
    tokenizer = Tokenizer.load(made)
    train, test = (TokenData.open(made, split, tokenizer) for split in ("train", "test"))
    stream = np.concatenate([train.document(i) for i in range(train.n_documents)])
    held_out = [test.document(i) for i in range(test.n_documents)]
    np.save(folder / "train.npy", stream)
    np.savez(folder / "test.npz", *held_out)
    return {
        "language": language, "documents": documents, "train_documents": train.n_documents, "train_bytes": train.bytes,
        "train_tokens": len(stream), "test_documents": len(held_out), "test_bytes": test.bytes,
        "test_tokens": sum(map(len, held_out)), "eos": tokenizer.eos, "stream": stream, "held_out": held_out,
    }  # fmt: skip


def ngram(text: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Nats of a 5-gram with modified Kneser-Ney smoothing."""
    from modelworks.evaluate.ngram import NGram

    model = NGram(5, VOCAB).fit(np.concatenate([[text["eos"]], text["stream"]]))
    bits = model.bits(np.concatenate([[text["eos"]], *text["held_out"]]))[1:]
    return {"nats": float(bits.sum()) * np.log(2).item(), "tokens": text["train_tokens"]}


def ours(text: dict[str, Any], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Nats of the recipe's model after a training that fits the minutes."""
    import modelworks as mw
    from modelworks.base.device import set_threads

    def one(steps: int, name: str) -> tuple[watched.Watched, dict[str, Any]]:
        seen = recipe(folder, options, name, "--set", f"stages.model.budget={{steps: {steps}}}")
        return seen, json.loads((folder / "run" / "model" / "artefact.json").read_text(encoding="utf-8"))

    trial = TINY_TRIAL if options.tiny else TRIAL
    seen, facts = one(trial, "trial")
    pace = facts["metrics"]["seconds"] / trial
    around = seen.seconds - facts["metrics"]["seconds"]
    steps = max(1, int((options.seconds - around) / pace))
    seen, facts = one(steps, "ours")
    set_threads(options.threads)
    model = mw.load(folder / "run" / "model")
    metrics = facts["metrics"]
    return {
        "nats": heldout.nats(model.logits, text["held_out"], text["eos"], BLOCK), "seconds": seen.seconds,
        "steps": steps, "tokens": metrics["tokens"], "parameters": metrics["parameters"], "settings": facts["settings"],
        "peak_bytes": seen.peak_bytes,
    }  # fmt: skip


def trainer(
    text: dict[str, Any], folder: Path, options: argparse.Namespace, parameters: int, tuned: bool
) -> dict[str, Any]:
    """Nats of the Trainer's model after the same minutes."""
    name = "tuned" if tuned else "trainer"
    given, out = folder / f"{name}.task", folder / f"{name}.json"
    task = {
        "train": str(folder / "train.npy"), "test": str(folder / "test.npz"), "out": str(out), "eos": text["eos"],
        "scratch": str(folder / f"{name}-run"), "seconds": options.seconds, "threads": options.threads,
        "width": options.model["d_model"], "heads": options.model["n_heads"], "vocab": VOCAB, "block": BLOCK, "parameters": parameters, "tuned": tuned,
        "seed": options.seed,
    }  # fmt: skip
    given.write_text(json.dumps(task), encoding="utf-8")
    script = Path(__file__).with_name("peers") / "hf_defaults.py"
    limit = 3 * options.seconds + 1800
    seen = watched.run([sys.executable, str(script), str(given)], folder / f"{name}.log", _threads(options), limit)
    return {**json.loads(out.read_text(encoding="utf-8")), "peak_bytes": seen.peak_bytes}


def measure(language: str, folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All sides on one language."""
    text = prepare(language, folder, options)
    facts = {key: value for key, value in text.items() if key not in ("stream", "held_out")}
    print(json.dumps(facts), flush=True)
    runs: list[dict[str, Any]] = []
    parameters = options.parameters
    for side in [side for side in SIDES if side in options.sides]:
        if side == "5-gram":
            found = ngram(text, folder, options)
        elif side == "ours":
            found = ours(text, folder, options)
            parameters = found["parameters"]
        else:
            found = trainer(text, folder, options, parameters, side == "trainer tuned")
        found["bits_per_byte"] = heldout.bits_per_byte(found["nats"], text["test_bytes"])
        print(f"{language}, {side}: {found['bits_per_byte']:.4f} bits a byte", flush=True)
        runs.append({"side": side, **facts, **found})
    return runs


def cells(run: dict[str, Any]) -> list[str]:
    """A run's row."""
    return [
        f"{run['language']}, {run['side']}",
        f"{run['bits_per_byte']:.3f}",
        f"{run['seconds'] / 60:.1f}" if "seconds" in run else "",
        f"{run['parameters'] / 1e6:.1f}M" if "parameters" in run else "",
        f"{run['tokens'] / run['train_tokens']:.1f}",
        f"{run['train_bytes'] / 1e6:.1f} / {run['test_bytes'] / 1e6:.2f}",
    ]


def verdict(language: str, runs: list[dict[str, Any]]) -> str:
    """Whether ours is below the two that it is to beat."""
    bits = {run["side"]: run["bits_per_byte"] for run in runs if run["language"] == language}
    others = {side: bits[side] for side in ("5-gram", "trainer") if side in bits}
    if "ours" not in bits or not others:
        return f"{language}: nothing to compare."
    met = all(bits["ours"] < value for value in others.values())
    words = ", ".join(f"{side} {value:.3f}" for side, value in others.items())
    return f"{'met' if met else 'NOT MET'}: {language}: ours {bits['ours']:.3f} is to be below {words}."


def _threads(options: argparse.Namespace) -> dict[str, str]:
    """What a process needs to know; the number is said to ours only where it is not the machine's own: it may choose."""
    around = {"OMP_NUM_THREADS": str(options.threads), "HF_HUB_OFFLINE": "1"}
    cores = len(os.sched_getaffinity(0))
    return around if options.threads == cores else around | {"MODELWORKS_THREADS": str(options.threads)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=[*texts.LANGUAGES, "both"], default="both")
    parser.add_argument("--minutes", type=float, default=15.0, help="for training; 1 is only a try")
    parser.add_argument("--sides", default="5-gram,ours,trainer", help=f"by comma, of: {', '.join(SIDES)}")
    parser.add_argument("--tiny", action="store_true", help="a toy of a model: only a try")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of our recipe")
    parser.add_argument(
        "--parameters", type=int, default=5_900_000, help="of the Trainer's model, where ours is left out"
    )
    parser.add_argument("--keep", type=Path, help="a folder for everything made (default: one that is deleted)")
    parser.add_argument("--publish", action="store_true", help="keep the result, put its table into docs/benchmarks.md")
    options = parser.parse_args()
    options.model = TINY if options.tiny else SHAPE
    options.seconds, options.sides = 60 * options.minutes, options.sides.split(",")
    languages = list(texts.LANGUAGES) if options.language == "both" else [options.language]
    runs = []
    with tempfile.TemporaryDirectory(prefix="minutes-") as name:
        for language in languages:
            runs += measure(language, (options.keep or Path(name)).resolve() / language, options)
    head = ["text, who", "bits a byte", "minutes", "parameters", "epochs", "MB train / test"]
    lines = record.table(head, [cells(run) for run in runs])
    goals = [verdict(language, runs) for language in languages]
    print(*lines, *goals, sep="\n")
    if options.publish:
        print(record.write("minutes", PROTOCOL, runs, {"goals": goals, "minutes": options.minutes}))
        where = f"{record.machine_words(record.machine())}, {options.threads} threads; commit {record.commit()}."
        for language, goal in zip(languages, goals, strict=True):
            own = [cells(run) for run in runs if run["language"] == language]
            record.publish_table(f"minutes_{language}", [*record.table(head, own), "", where, "", goal])


if __name__ == "__main__":
    main()
