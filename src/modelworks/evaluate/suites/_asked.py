"""Items that are questions, read and put to an assistant; shared by the suites that ask."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelworks.base import log
from modelworks.base.errors import DamagedError, UserError
from modelworks.data import lines
from modelworks.data.order import shuffled

from ..context import Answerer, Given, SuiteContext
from ..intervals import Interval, mean, paired
from ..scoring import column

AT_ONCE = 64
SCORES = ("correct", "right_passage", "exact", "f1")


def read(folder: Path, split: str, limit: int, seed: int) -> list[dict[str, Any]]:
    """Items of `questions/<split>.jsonl.zst` (or of that file in `folder` itself), at most `limit` (0: all).

    Raises UserError when there are none, DamagedError naming the line that is no item.
    """
    place = folder / "questions" if (folder / "questions").is_dir() else folder
    path = place / f"{split}.jsonl.zst"
    items = []
    for number, item in enumerate(lines.read(path), start=1):
        if not isinstance(item, dict) or not all(
            isinstance(item.get(key), str) for key in ("id", "question", "answer")
        ):
            raise DamagedError(f"{path}:{number}: is not an item (needs id, question and answer); make it again.")
        items.append(item)
    if not items:
        raise UserError(f"{path}: holds no question to ask; check the data.")
    if limit and len(items) > limit:
        items = [items[i] for i in sorted(shuffled(len(items), seed, "items")[:limit].tolist())]
    return items


def answerer(context: SuiteContext) -> Answerer:
    """Who answers. Raises UserError when nobody was given."""
    if context.answerer is None:
        raise UserError("this suite asks questions; give it an assistant (a model folder with passages).")
    return context.answerer


def ask(who: Answerer, questions: Sequence[str], what: str) -> list[Given]:
    """One answer a question, with progress. Raises UserError when their number is not right."""
    answers: list[Given] = []
    with log.progress(what, len(questions), "questions") as bar:
        for start in range(0, len(questions), AT_ONCE):
            part = list(questions[start : start + AT_ONCE])
            answers += who.answer_many(part)
            bar.advance(len(part))
    if len(answers) != len(questions):
        raise UserError(f"the assistant gave {len(answers)} answers to {len(questions)} questions.")
    return answers


def means(records: list[dict[str, Any]], seed: int, names: Sequence[str] = SCORES) -> dict[str, Interval]:
    """Interval of the mean of each score, over the records that have it."""
    return {name: mean(column(records, name), seed) for name in names if column(records, name)}


def differences(after: list[dict[str, Any]], before: list[dict[str, Any]], seed: int) -> dict[str, Interval]:
    """Interval of the mean difference of each score over the same items."""
    return {
        name: paired(column(after, name), column(before, name), seed)
        for name in SCORES
        if column(before, name) and len(column(after, name)) == len(column(before, name))
    }
