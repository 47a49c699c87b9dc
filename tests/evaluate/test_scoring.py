"""Scores of answers: words, overlap against hand-counted values, what counts as right, and support looked up again."""

from __future__ import annotations

import pytest

from modelworks.data.grounding import Answer
from modelworks.data.retrieve import Passage
from modelworks.evaluate import scoring

ITEM = {"id": "1", "question": "q", "answer": "It returns the current directory.", "passage": "p"}
PASSAGE = Passage(id="p", title="", text="getcwd()\nReturn the current directory. It never fails.")


@pytest.mark.parametrize(
    ("said", "wanted", "f1"),
    [
        ("The cat sat.", "a cat sat", 1.0),
        ("cat cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("北京是首都", "北京", 4 / 7),
        ("use os.path", "os.path", 2 / 3),
        ("", "", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_overlap(said, wanted, f1):
    assert scoring.overlap(said, wanted) == pytest.approx(f1)
    assert scoring.overlap(wanted, said) == pytest.approx(f1)


def test_right_needs_the_passage_and_the_words():
    right = scoring.score(ITEM, Answer("It returns the current directory.", "own", (PASSAGE,), "", True))
    assert (right["correct"], right["exact"], right["right_passage"], right["unsupported_sentences"]) == (1, 1, 1, 0)
    elsewhere = scoring.score(ITEM, Answer(ITEM["answer"], "own", (Passage("x", "", ""),), "", True))
    assert (elsewhere["correct"], elsewhere["f1"], elsewhere["cited_share"]) == (0, 1, 0)
    beside = scoring.score(ITEM, Answer("It never fails.", "quoted", (PASSAGE,), "", True))
    assert (beside["correct"], beside["right_passage"]) == (0, 1)
    declined = scoring.score(ITEM, Answer("I don't know.", "declined"))
    assert (declined["correct"], declined["f1"], declined["cited_share"]) == (0, 0, None)


def test_unanswerable_questions_are_right_when_declined():
    item = {**ITEM, "passage": None}
    assert scoring.score(item, Answer("I don't know.", "declined"))["correct"] == 1
    assert scoring.score(item, Answer("It never fails.", "quoted", (PASSAGE,)))["correct"] == 0
    assert scoring.score(item, Answer("I don't know.", "declined"))["f1"] is None


def test_support_does_not_believe_the_label():
    assert scoring.support(Answer("It never fails.", "quoted", (PASSAGE,), "", False)) == (1, 0)
    assert scoring.support(Answer("It never fails. It always fails.", "quoted", (PASSAGE,), "", True)) == (2, 1)
    assert scoring.support(Answer("It never fails.", "quoted", ())) == (1, 1)
    assert scoring.support(Answer("It might fail.", "own", (PASSAGE,), "", False)) == (1, 1)
    assert scoring.support(Answer("It never fails.", "own", (PASSAGE,), "", True)) == (1, 0)
