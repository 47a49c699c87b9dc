"""A recipe that runs in seconds on a page of text, for the tests of the runner and the command line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RECIPE = """\
name: tiny
stages:
  pages:  {do: collect, from: ["files:{data}"]}
  corpus: {do: prepare, from: pages, steps: [normalise, split]}
  tokens: {do: tokenizer, from: corpus, vocab_size: 300}
  model:
    do: train
    objective: causal_lm
    model: {family: qwen3, d_model: 32, n_layers: 2, n_heads: 2, n_kv_heads: 1, d_head: 16, d_ff: 64, dropout: 0.1}
    data: corpus
    tokenizer: tokens
    max_len: 32
    rows: 4
    budget: {steps: 12}
    dtype: float32
    evaluate_every: 6
    save_every: 0
    track: []
"""
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards brew soup and sing about rivers of light".split()


def write(folder: Path, recipe: str = RECIPE) -> tuple[Path, Path]:
    """The recipe and a folder of documents under `folder`."""
    documents = folder / "documents"
    documents.mkdir()
    for n in range(12):
        text = " ".join(WORDS[(i * (n + 3) + n) % len(WORDS)] for i in range(120))
        (documents / f"{n:02d}.txt").write_text(f"Document {n}. {text}.\n")
    path = folder / "tiny.yaml"
    path.write_text(recipe)
    return path, documents


def command(*words: object, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run `modelworks WORDS` as a user would; stdout and stderr as text."""
    line = [sys.executable, "-m", "modelworks", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(line, capture_output=True, text=True, cwd=cwd, env=env, timeout=300)
