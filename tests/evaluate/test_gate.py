"""The gate: thresholds held or not, on values and on interval ends; misspelled metrics are named."""

from __future__ import annotations

import pytest

from modelworks.base.errors import UserError
from modelworks.evaluate import gate
from modelworks.evaluate.context import Result
from modelworks.evaluate.intervals import wilson

SCORES = {"questions": {"right_passage": wilson(90, 100), "unsupported": 0.0}}


def write(folder, text):
    path = folder / "thresholds.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("questions.right_passage: {at_least: 0.85}", 0),
        ("questions.right_passage: {at_least: 0.85, bound: low}", 1),
        ("questions.right_passage: {at_least: 0.95}\nquestions.unsupported: {at_most: 0}", 1),
        ("questions.right_passage: {at_least: 0.85, at_most: 0.95}\nquestions.unsupported: {at_most: 0}", 0),
    ],
)
def test_verdicts(tmp_path, text, status):
    verdicts = gate.check(SCORES, write(tmp_path, text))
    assert gate.exit_status(verdicts) == status
    assert len(verdicts) == len(text.splitlines())


def test_stored_results_give_the_same_verdict(tmp_path):
    Result("questions", 1, dict(SCORES["questions"]), [], "protocol").write(tmp_path / "scores")
    path = write(tmp_path, "questions.right_passage: {at_least: 0.85, bound: low}")
    assert gate.check(gate.read(tmp_path / "scores"), path) == gate.check(SCORES, path)
    with pytest.raises(UserError, match="no suite's result"):
        gate.read(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("questions.right_pasage: {at_least: 1}", "did you mean 'questions.right_passage'"),
        ("questions.unsupported: {}", "has no limit"),
        ("questions.unsupported: {at_most: 0, bound: high}", "has no interval"),
        ("\nquestions.unsupported: {atmost: 0}", r"thresholds.yaml:2: .*did you mean 'at_most'"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        gate.check(SCORES, write(tmp_path, text))
