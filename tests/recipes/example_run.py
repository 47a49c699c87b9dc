"""A run written by hand, with what stages of every verb leave: invented numbers, only for tests of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MACHINE = {"processor": "An example processor", "cores": 2, "memory_gb": 8.0, "python": "3.11.7", "torch": "2.13.0"}
HOSTILE = '<script>alert(1)</script> & "quotes" \'); 中文 <img src=x onerror=alert(1)>'


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in value), encoding="utf-8")
    else:
        path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def artefact(run: Path, name: str, verb: str, sources: list[str], seconds: float, **more: Any) -> Path:
    """A stage's folder with its facts and the link named after it."""
    digest = f"{sum(map(ord, name)) * 2654435761 % 2**32:08x}"
    folder = run / f"{name}-{digest}"
    inputs = {f"in{n}": [json.loads((run / s / "artefact.json").read_text())["digest"]] for n, s in enumerate(sources)}
    facts = {
        "verb": verb, "stage": name, "recipe": "example", "digest": digest + "0" * 56, "seed": 1,
        "settings": {"objective": more.pop("objective", None), "note": HOSTILE}, "inputs": inputs,
        "input_folders": {f"in{n}": [(run / s).resolve().name] for n, s in enumerate(sources)},
        "metrics": more.pop("metrics", {}), "versions": {"modelworks": "0.0.0", "torch": "2.13.0"}, "machine": MACHINE,
        "seconds": seconds, "peak_memory": 1_400_000_000,
    }  # fmt: skip
    put(folder / "artefact.json", facts)
    (run / name).symlink_to(folder.name)
    return folder


def account(step: str, came: int, left: dict[str, int], made: int = 0, **notes: int) -> dict[str, Any]:
    kept = came + made - sum(left.values())
    out: dict[str, Any] = {
        "step": step,
        "came": {"documents": came, "bytes": came * 400},
        "kept": {"documents": kept, "bytes": kept * 400},
        "left": {k: {"documents": n, "bytes": n * 400, "examples": [f"doc-{k[:4]}"]} for k, n in left.items()},
    }
    return (
        out | ({"made": {"documents": made, "bytes": made * 400}} if made else {}) | ({"notes": notes} if notes else {})
    )


def curve(steps: int, start: float, end: float) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        loss = end + (start - end) * math.exp(-4 * step / steps) + 0.02 * math.sin(step)
        rate = 0.003 * min(1, step / 50) * (1 if step < 0.7 * steps else (steps - step) / (0.3 * steps))
        out.append({"step": step, "loss": loss, "learning_rate": rate, "tokens": step * 8192.0,
                    "tokens_per_second": 31000 + 500 * math.cos(step), "share_of_peak": 0.4})  # fmt: skip
        if step % 50 == 0:
            out.append({"step": step, "validation_loss": loss + 0.05, "validation_bits_per_byte": loss / 2})
    return out


def interval(value: float, half: float) -> dict[str, Any]:
    return {
        "value": value,
        "low": value - half,
        "high": min(value + half, 1.0) if value <= 1 else value + half,
        "n": 320,
    }


def scores() -> dict[str, Any]:
    perplexity = [("base", 1.57, 0.02), ("6-gram", 1.94, 0.02), ("xz -9", 2.57, 0.0), ("unigram", 4.6, 0.03)]
    stages = [("chat", 0.81), ("aligned", 0.88), ("hardened", 0.9)]
    return {
        "perplexity": {
            "version": "1", "protocol": "Held-out documents, 512 tokens, every byte counted once.",
            "metrics": {"bits_per_byte": interval(1.57, 0.02)},
            "rows": [{"model": m, "bits_per_byte": interval(v, h) if h else v} for m, v, h in perplexity],
        },
        "questions": {
            "version": "1", "protocol": "320 questions, phrasing and symbols unseen in training.",
            "metrics": {"right_passage": interval(0.9, 0.03)},
            "rows": [{"model": m, "right_passage": interval(v, 0.035), "f1": interval(v - 0.2, 0.03), "unsupported": 0.0,
                      "own": 0.6, "quoted": 0.3, "declined": 0.1, "n": 320} for m, v in stages],
            "comparisons": [{"difference": "hardened - aligned", "measure": "right_passage", "by": interval(0.02, 0.03)}],
        },
        "robustness": {
            "version": "1", "protocol": "The same questions with typing errors.", "metrics": {},
            "rows": [{"model": m, "rate": r, "right_passage": interval(v - loss * r, 0.03)}
                     for m, v, loss in (("aligned", 0.88, 3.0), ("hardened", 0.9, 1.2)) for r in (0.0, 0.05, 0.1)],
        },
    }  # fmt: skip


def items() -> list[dict[str, Any]]:
    passage = {"id": "os.path.join", "title": "os.path.join(a, *p)", "text": "Join two or more pathname components."}
    return [
        {"id": "1", "suite": "questions", "question": "How do I join path components?", "exact_match": True,
         "answer": {"text": "Use os.path.join: it joins two or more pathname components.", "kind": "own",
                    "citations": [passage]}, "expected": "Join two or more pathname components."},
        {"id": "2", "question": "路径怎么拼接？", "text": "Join two or more pathname components.", "kind": "quoted",
         "citations": [passage], "right": True},
        {"id": "4", "suite": "robustness", "rate": 0.1, "question": "Attacked?", "said": "Hidden.", "shown_as": "own"},
        {"id": "5", "question": "As stages write it?", "kind": "signature", "shown_as": "quoted", "said": "So it is.",
         "cited": ["os.path.split"], "correct": 0.0, "right_passage": 0.0},
        {"id": "3", "question": f"What is {HOSTILE}?", "text": "I don't know.", "kind": "declined", "right": False},
    ]  # fmt: skip


def build(folder: Path) -> Path:
    """Write the run under `folder` and return its place."""
    run = folder / "example"
    run.mkdir(parents=True)
    pages = artefact(run, "pages", "collect", [], 4.2, metrics={"documents": 9200, "bytes": 3.7e6})
    put(pages / "ledger.json", {"format": 1, "steps": [account("collect", 9210, {"unreadable": 10})], "shards": {}})
    corpus = artefact(run, "corpus", "prepare", ["pages"], 9.8, metrics={"documents": 7900})
    steps = [
        account("normalise", 9200, {}, mojibake_repaired=12),
        account("quality", 9200, {"too short": 700, "mostly symbols": 30}),
        account("dedup", 8470, {"exact copy": 350, "near copy": 220}),
        account("pii", 7900, {}, email=41),
        account("passages", 7900, {}, made=2400),
    ]
    shard = {split: [{"file": f"{split}-0.jsonl.zst", "documents": n, "bytes": n * 400}]
             for split, n in (("train", 9270), ("validation", 515), ("test", 515))}  # fmt: skip
    put(corpus / "ledger.json", {"format": 1, "steps": steps, "shards": shard})
    artefact(run, "tokens", "tokenizer", ["corpus"], 3.1, metrics={"vocab_size": 4096, "bytes_per_token": 3.9})
    before = "tokens"
    for name, objective, start, end in (("base", "causal_lm", 8.3, 3.0), ("chat", "chat", 2.9, 0.9),
                                        ("aligned", "dpo", 0.69, 0.2), ("hardened", "adversarial", 0.9, 0.6)):  # fmt: skip
        stage = artefact(run, name, "train", ["corpus", "tokens", before], 120.0 if name == "base" else 60.0,
                         objective=objective, metrics={"loss": end, "validation_loss": end + 0.05})  # fmt: skip
        put(stage / "metrics.jsonl", curve(300, start, end))
        put(stage / "plan.json", {"seconds": 110.0, "memory_bytes": 1.3e9, "tokens": 2e6})
        before = name
    end = artefact(run, "scores", "evaluate", ["hardened", "base", "chat", "aligned"], 70.0)
    put(end / "scores.json", scores())
    put(end / "items.jsonl", items())
    return run
