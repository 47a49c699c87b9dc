"""One thread for tiny models, and a tokenizer, a corpus and conversations of a few lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from modelworks.base.protocols import Context
from modelworks.data import corpus, lines
from modelworks.data.corpus import Document
from modelworks.data.tokenizer import Tokenizer

TEXTS = [f"The number after {n} is {n + 1}, and twice {n} is {2 * n}." for n in range(40)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300)


@pytest.fixture
def context(tmp_path: Path, tokenizer: Tokenizer) -> Context:
    """A folder that is a corpus and holds conversations too."""
    splits = ["validation" if n % 5 == 0 else "train" for n in range(40)]
    corpus.write(
        tmp_path, [Document(str(n), text, {"split": split}) for n, (text, split) in enumerate(zip(TEXTS, splits))]
    )
    for split, numbers in (("train", range(30)), ("validation", range(30, 40))):
        records = [
            {"id": str(n), "messages": [{"role": "user", "content": f"After {n}?"}, {"role": "assistant", "content": f"It is {n + 1}."}], "meta": {}}
            for n in numbers
        ]  # fmt: skip
        lines.write(tmp_path / "conversations" / f"{split}.jsonl.zst", records)
    return Context(data=tmp_path, tokenizer=tokenizer, max_len=64, rows=4, seed=7)
