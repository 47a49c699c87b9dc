"""Questions to an assistant that answers from passages: right or not, cited or not, supported or not."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from modelworks.base.config import Count, Settings

from ..context import Result, SuiteContext
from ..intervals import Interval, mean, wilson
from ..scoring import RIGHT, column, score
from . import _asked

VERSION = 1


class Config(Settings):
    """Which questions are asked."""

    split: str = "test"
    """Split of the questions."""
    limit: Count = Field(0, ge=0)
    """At most so many, chosen by the seed (0: all)."""


PROTOCOL = f"""Each question is asked once, by itself, and answered as a user would see it (after the check of the
assistant). exact: same words in the same order, lower case, without articles and punctuation. f1: overlap of words
as bags (SQuAD), Chinese by character. right_passage: the passage that the question was made from is among those
cited. citation_precision: share of the passages cited that are the right one. correct: right passage cited and f1 of
at least {RIGHT}; where no passage answers the question: declined. unsupported: share of sentences shown that
are neither word for word in a cited passage nor made of its words alone (numbers and names as they stand; judged
apart from the assistant's own check). raw_supported: share of the model's own outputs that
passed the check before anything was replaced. own, quoted, declined: how answers were shown. Intervals are 95 %:
Wilson for shares, percentile bootstrap over questions otherwise. exact, f1, right_passage: over answerable questions,
an answer that was declined counts 0."""


def run(config: Config, context: SuiteContext) -> Result:
    """Ask and score. Raises UserError when there is nobody to ask or nothing to ask."""
    who = _asked.answerer(context)
    items = _asked.read(context.data, config.split, config.limit, context.seed)
    answers = _asked.ask(who, [item["question"] for item in items], "asking")
    records = [score(item, answer) for item, answer in zip(items, answers, strict=True)]
    metrics = measure(records, context.seed)
    rows = [["measure", "value", "95 % interval", "questions"]]
    for name, found in metrics.items():
        if isinstance(found, Interval):
            rows.append([name, f"{found.value:.3f}", f"{found.low:.3f} to {found.high:.3f}", str(found.n)])
    return Result("questions", VERSION, metrics, records, " ".join(PROTOCOL.split()), rows)


def measure(records: list[dict[str, Any]], seed: int) -> dict[str, Interval | float]:
    """All metrics of scored answers."""
    metrics: dict[str, Interval | float] = dict(_asked.means(records, seed))
    if precision := column(records, "cited_share"):
        metrics["citation_precision"] = mean(precision, seed)
    shown = sum(r["sentences"] for r in records)
    if shown:
        metrics["unsupported"] = wilson(sum(r["unsupported_sentences"] for r in records), shown)
    metrics["raw_supported"] = mean([float(r["raw_supported"]) for r in records], seed)
    for kind in ("own", "quoted", "declined"):
        metrics[kind] = mean([float(r["shown_as"] == kind) for r in records], seed)
    unanswerable = [r["correct"] for r in records if not r["answerable"]]
    if unanswerable:
        metrics["declined_rightly"] = mean(unanswerable, seed)
    if answerable := [r for r in records if r["answerable"]]:
        metrics["declined_wrongly"] = mean([float(r["shown_as"] == "declined") for r in answerable], seed)
    return metrics


def example(folder: Any) -> tuple[Config, list[tuple[SuiteContext, dict[str, float]]]]:
    """A fixture: contexts with one assistant that is always right and one that never is, and what they must score."""
    from . import _example

    items = _example.questions(folder)
    right = SuiteContext(folder, answerer=_example.Scripted(items, right=True))
    wrong = SuiteContext(folder, answerer=_example.Scripted(items, right=False))
    best = {
        "correct": 1.0,
        "exact": 1.0,
        "f1": 1.0,
        "right_passage": 1.0,
        "citation_precision": 1.0,
        "unsupported": 0.0,
    }
    worst = {
        "correct": 0.0,
        "exact": 0.0,
        "f1": 0.0,
        "right_passage": 0.0,
        "citation_precision": 0.0,
        "unsupported": 1.0,
    }
    return Config(), [(right, best), (wrong, worst)]
