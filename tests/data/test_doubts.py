"""Doubts about data: documents in both halves, less data than a batch, other data of the same shape."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from modelworks.base.errors import UserError
from modelworks.base.protocols import Context
from modelworks.data import corpus, doubts
from modelworks.data.loader import Documents, Examples, Loader
from modelworks.data.tokenizer import Tokenizer
from modelworks.data.tokens import TokenData
from modelworks.objectives import causal_lm


def test_overlap_counts_exact_documents() -> None:
    draw = random.Random(0)
    train = [[draw.randrange(50) for _ in range(draw.randrange(3, 9))] + [0] for _ in range(300)]
    validation = [[60, n, 0] for n in range(10)] + [train[7], train[299], train[7], [*train[8][:-2], 61, 0]]
    expected = sum(document in train for document in validation)  # the slow way
    assert expected == 3 == doubts.overlap(TokenData.of(train), TokenData.of(validation))
    assert doubts.overlap(TokenData.of(train), TokenData.of([[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0]])) == 0
    assert doubts.same([["a"], ["b"], ["c"]], [["b"], ["d"], ["b"]]) == 2


@pytest.fixture
def tokenizer() -> Tokenizer:
    return Tokenizer.train((chr(97 + n % 26) * 3 for n in range(100)), vocab_size=300)


def write(folder: Path, train: list[str], validation: list[str]) -> Path:
    halves = (("train", train), ("validation", validation))
    documents = [corpus.Document(f"{half}/{n}", t, {"split": half}) for half, ts in halves for n, t in enumerate(ts)]
    folder.mkdir()
    corpus.write(folder, documents)
    return folder


def test_both_are_said_and_training_goes_on(
    tmp_path: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]
) -> None:
    texts = [f"document {n} says {n * n}" for n in range(12)]
    data = write(tmp_path / "both", texts, ["something else", *texts[3:5]])
    objective = causal_lm.build(causal_lm.Config(), Context(data, tokenizer, max_len=32, rows=64, seed=1))
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("2 of 3 validation documents stand word for word in the training data")
    assert "less than the 64 of a batch: every step sees some of it twice; lower rows" in said[1] and len(said) == 2
    batch = next(objective.batches(None))
    assert set(objective.describe(batch)) == {f"train/{n}" for n in range(12)}  # ids where the data has them
    data = write(tmp_path / "apart", texts, ["something else"])
    causal_lm.build(causal_lm.Config(), Context(data, tokenizer, max_len=32, rows=2, seed=1))
    assert not capsys.readouterr().err


def test_other_data_of_the_same_lengths_is_refused() -> None:
    """A checkpoint's place, or another rank's, is of the very data: the lengths alone do not tell."""
    one = [[5, 6, 7, 0], [8, 9, 0], [5, 5, 5, 5, 0]]
    other = [[5, 6, 7, 0], [8, 4, 0], [5, 5, 5, 5, 0]]
    places = [Loader(Documents(TokenData.of(ids), 0, 8), 2, 8, 1).state_dict() for ids in (one, other, one)]
    assert places[0] == places[2] != places[1]
    with pytest.raises(UserError, match="the data, the seed or max_len changed"):
        Loader(Documents(TokenData.of(other), 0, 8), 2, 8, 1).load_state_dict(places[0])
    masks = [Loader(Examples([(one[0], mask)], 8), 1, 8, 1).state_dict() for mask in ([0, 1, 1, 1], [0, 0, 1, 1])]
    assert masks[0] != masks[1]


def test_names_follow_the_pieces() -> None:
    """Long documents are cut into pieces, examples with nothing to learn left out: names stay with their own."""
    documents = TokenData.of([[1] * 20 + [0], [2] * 3 + [0]])
    pieces = Documents(documents, 0, 8)
    assert [pieces.name(i) for i in range(len(pieces.lengths))] == ["document 1"] * 3 + ["document 2"]
    examples = Examples([([1, 2, 3], [0, 0, 0]), ([4, 5, 6], [0, 1, 1])], 8, ["dull", "good"])
    assert len(examples.lengths) == 1 and examples.name(0) == "good"
    batch = next(Loader(examples, 2, 8, 0))
    assert batch.source == [[0], [0]] and batch.to("cpu").source == batch.source
    assert Loader(examples, 2, 8, 0).describe(batch) == ["good"]
    assert np.array_equal(batch.inputs["tokens"][0, :2], [4, 5])
