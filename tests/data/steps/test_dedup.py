"""dedup: against brute force over the true Jaccard, whatever the order."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.data.corpus import Account, Document
from modelworks.data.steps import dedup
from modelworks.data.steps.dedup import Config


def run(documents: list[Document], **config: object) -> tuple[list[Document], Account]:
    account = Account("dedup")
    kept = list(account.outgoing(dedup.apply(account.incoming(documents), Config(**config), account)))
    account.check()
    return kept, account


def sets(text: str, size: int) -> set[tuple[str, ...]]:
    """Shingles written down independently: words, and CJK characters one by one."""
    words = re.findall(r"[\u3400-\u9fff]|[^\W\u3400-\u9fff]+", text.lower()) or [text]
    size = min(size, len(words))
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


def overlap(a: str, b: str, size: int) -> float:
    left, right = sets(a, size), sets(b, size)
    return len(left & right) / len(left | right)


def brute_force(documents: list[Document], threshold: float, size: int) -> set[str]:
    kept: list[Document] = []
    for d in sorted(documents, key=lambda d: (-len(d.text), d.id)):
        same = any(" ".join(d.text.split()) == " ".join(k.text.split()) for k in kept)
        if not same and not any(overlap(d.text, k.text, size) >= threshold for k in kept):
            kept.append(d)
    return {d.id for d in kept}


def family(seed: int, count: int) -> list[Document]:
    """Texts and their children with a few words changed, English and Chinese."""
    rng = random.Random(seed)
    words = [f"word{i}" for i in range(300)]
    out: list[Document] = []
    for number in range(count):
        if out and rng.random() < 0.6:
            parent = rng.choice(out).text
            parts = list(parent) if "山" in parent else parent.split(" ")
            for _ in range(rng.choice([0, 1, 1, 2, 4, 8])):
                parts[rng.randrange(len(parts))] = rng.choice("天地人" if "山" in parent else words)
            text = ("" if "山" in parent else " ").join(parts)
        elif rng.random() < 0.3:
            text = "山" + "".join(chr(rng.randrange(0x4E00, 0x4F00)) for _ in range(rng.randrange(10, 80)))
        else:
            text = " ".join(rng.choices(words, k=rng.randrange(3, 120)))
        out.append(Document(f"d{number:04d}", text, {"n": number}))
    return out


@pytest.mark.parametrize(("threshold", "size"), [(0.8, 5), (0.8, 3), (0.5, 2), (0.9, 1)])
def test_equals_brute_force(threshold: float, size: int) -> None:
    documents = family(int(threshold * 10) + size, 250)
    kept, account = run(documents, threshold=threshold, shingle=size)
    assert {d.id for d in kept} == brute_force(documents, threshold, size)
    assert 20 < len(kept) < 240 and account.left["near duplicate"].documents > 5
    assert [d.meta["n"] for d in kept] == sorted(d.meta["n"] for d in kept)  # in the order in which they came


def test_no_order_changes_what_is_kept() -> None:
    documents = family(3, 200)
    expected = {d.id for d in run(documents)[0]}
    for seed in range(4):
        random.Random(seed).shuffle(documents)
        assert {d.id for d in run(documents)[0]} == expected


def test_exact_ones_and_survivors() -> None:
    documents = [
        Document("b", "the very  same\ntext"),
        Document("a", "the very same text"),
        Document("c", "the very same text"),
        Document("x", "quite another text than that"),
    ]
    kept, account = run(documents, threshold=1.0)
    assert [d.id for d in kept] == ["b", "x"]  # the longest
    assert account.left["exact duplicate"].documents == 2 and account.examples["exact duplicate"] == ["a", "c"]
    assert run([])[0] == []
    assert len(run([Document(str(i), t) for i, t in enumerate(["", " ", "!?", "?!", "😀"])])[0]) == 4


@settings(max_examples=60, deadline=None)
@given(left=st.text(max_size=60), right=st.text(max_size=60), size=st.integers(1, 6))
def test_jaccard_of_hashes_is_that_of_shingles(left: str, right: str, size: int) -> None:
    ours = [dedup.tokens(t) for t in (left, right)]
    runs = [{tuple(w[i : i + min(size, len(w))]) for i in range(len(w) - min(size, len(w)) + 1)} for w in ours]
    got = dedup.jaccard(dedup.shingles(left, size), dedup.shingles(right, size))
    assert got == pytest.approx(len(runs[0] & runs[1]) / len(runs[0] | runs[1]))


def test_chinese_is_taken_apart_by_character() -> None:
    assert dedup.tokens("Python语言3.11版") == ["python", "语", "言", "3", "11", "版"]
    assert len(np.unique(dedup.shingles("天天天天天天", 2))) == 1
