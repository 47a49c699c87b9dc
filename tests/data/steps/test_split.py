"""split: by group and seed alone, stable under additions; small corpora still get every split."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.data.corpus import Account, Document
from modelworks.data.steps import split
from modelworks.data.steps.split import Config


def run(documents: list[Document], **config: object) -> list[Document]:
    account = Account("split")
    out = list(account.outgoing(split.apply(account.incoming(documents), Config(**config), account)))
    account.check()
    return out


def many(count: int, start: int = 0) -> list[Document]:
    return [Document(f"d{i}", f"text {i}", {"symbol": f"s{i // 2}"}) for i in range(start, start + count)]


def places(documents: list[Document]) -> dict[str, str]:
    return {d.id: d.meta["split"] for d in documents}


def test_shares_groups_and_stability() -> None:
    first = places(run(many(4000), seed=1))
    counts = {name: list(first.values()).count(name) for name in ("train", "validation", "test")}
    assert 3400 < counts["train"] < 3800 and 130 < counts["validation"] < 270 and 130 < counts["test"] < 270
    assert all(first[f"d{i}"] == first[f"d{i + 1}"] for i in range(0, 4000, 2))  # a group stays together
    shuffled = many(5000)
    random.Random(0).shuffle(shuffled)
    later = places(run(shuffled, seed=1))
    assert all(later[id] == place for id, place in first.items())  # nobody moved when others came
    other = places(run(many(4000), seed=2))
    assert sum(other[id] != place for id, place in first.items()) > 200


@settings(deadline=None, max_examples=60)
@given(count=st.integers(3, 60), seed=st.integers(0, 50))
def test_small_corpora_get_every_split_and_keep_groups_together(count: int, seed: int) -> None:
    documents = [Document(f"d{i}", "x" * i, {}) for i in range(count)]
    got = places(run(documents, seed=seed))
    assert set(got.values()) == {"train", "validation", "test"}
    assert list(got.values()).count("train") >= min(count - 2, count // 2)
    again = [Document(f"d{i}", "x" * i, {}) for i in reversed(range(count))]
    assert places(run(again, seed=seed)) == got


def test_one_document_is_cut_into_three() -> None:
    text = "".join(f"line {i} of the play\n" for i in range(1000))
    parts = run([Document("play", text, {"source": "x"})])
    assert [d.meta["split"] for d in parts] == ["train", "validation", "test"]
    assert "".join(d.text for d in parts) == text
    assert all(d.text.endswith("\n") for d in parts) and 0.88 < len(parts[0].text) / len(text) <= 0.9
    assert [d.id for d in parts] == ["play", "play~validation", "play~test"]
    assert "".join(d.text for d in run([Document("x", "没有换行" * 50)])) == "没有换行" * 50
    assert run([]) == []


def test_no_share_means_no_split() -> None:
    assert set(places(run(many(1000), test=0.0)).values()) == {"train", "validation"}
    assert set(places(run(many(3), test=0.0, validation=0.0)).values()) == {"train"}
    with pytest.raises(UserError, match="nothing to train on"):
        run(many(3), test=0.5, validation=0.5)
