"""Small tier: nine real trainings of three sizes and three budgets make a law that describes them (two minutes)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.recipes import tiny

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")


def done(*words: object, cwd: Path) -> str:
    result = tiny.command(*words, cwd=cwd, MODELWORKS_THREADS="1")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.mark.small
@pytest.mark.timeout(1200)
def test_nine_runs_make_a_law(tmp_path: Path) -> None:
    done("collect", "pydoc:stdlib", "--out", "pages", cwd=tmp_path)
    done("prepare", "pages", "--steps", "normalise", "dedup", "split", "--out", "corpus", cwd=tmp_path)
    done("tokenizer", "corpus", "--vocab-size", 512, "--out", "tokens", cwd=tmp_path)
    runs = []
    for width, heads in ((16, 1), (32, 1), (64, 2)):
        shape = {"preset": "qwen3-nano", "d_model": width, "n_layers": 2, "n_heads": heads, "n_kv_heads": heads}
        model = [word for key, value in (shape | {"d_ff": 3 * width}).items() for word in (f"--model.{key}", value)]
        for tokens in ("40k", "120k", "360k"):
            runs.append(f"{width}-{tokens}")
            settings = ["--data", "corpus", "--tokenizer", "tokens", "--tokens", tokens, "--rows", 8, "--max-len", 64,
                        "--evaluate-every", "1M", "--evaluate-tokens", "20k", "--dtype", "float32", "--track", "[]"]  # fmt: skip
            done("train", "causal_lm", *model, *settings, "--out", runs[-1], cwd=tmp_path)
    law = json.loads(done("plan", "--fit", *runs, "--out", "law", "--json", cwd=tmp_path))
    assert law["largest_misfit"] < 0.1 and len(law["runs"]) == 9
    best = [row["loss"] for row in law["budgets"]]
    assert best == sorted(best, reverse=True), "more compute is never worse"
    assert (tmp_path / "law" / "law.png").stat().st_size > 10_000
