"""The same questions with typing errors: how much of the score is lost, question by question."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from modelworks.attack import typos
from modelworks.base import seeds
from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError

from ..context import Result, SuiteContext
from ..intervals import Interval
from ..scoring import RIGHT, score
from . import _asked

VERSION = 1


class Config(Settings):
    """How noisy the questions get, and which are asked."""

    rates: list[float] = Field(default_factory=lambda: [0.1, 0.3])
    """Shares of words that get one typing error."""
    split: str = "test"
    """Split of the questions."""
    limit: Count = Field(0, ge=0)
    """At most so many, chosen by the seed (0: all)."""


PROTOCOL = f"""Every question is asked clean and once at each noise rate: that share of its words (runs of at least two
letters; two Chinese characters) gets one typing error (neighbouring key, swap, omission, doubling, case; homophone or
similar character in Chinese), attack typos version {typos.VERSION}. The errors come from seeds of the purpose
"robustness", which training never draws from. Scores as in the suite questions (correct: right passage cited and f1
of at least {RIGHT}, or rightly declined). lost = clean minus noisy over the same questions; its 95 % interval is of
the paired difference (Bonett-Price for outcomes, bootstrap over questions for f1)."""


def run(config: Config, context: SuiteContext) -> Result:
    """Ask clean and noisy. Raises UserError when there is nobody to ask, nothing to ask or a rate is out of range."""
    if not config.rates or not all(0 < rate <= 1 for rate in config.rates):
        raise UserError(f"rates are shares of words, above 0 and at most 1 (got {config.rates}).")
    who = _asked.answerer(context)
    items = _asked.read(context.data, config.split, config.limit, context.seed)
    clean = _scored(items, [item["question"] for item in items], who, "asking clean")
    metrics: dict[str, Interval | float] = {f"clean.{n}": v for n, v in _asked.means(clean, context.seed).items()}
    kept = [{**record, "rate": 0.0} for record in clean]
    rows = [["typing errors", "score", "clean", "noisy", "lost", "95 % interval of what is lost"]]
    for rate in config.rates:
        seed = seeds.derive(context.seed, "robustness", rate)
        noisy = _scored(items, [typos.perturb(i["question"], rate, seed) for i in items], who, f"asking at {rate:g}")
        lost = _asked.differences(clean, noisy, context.seed)
        for name, found in _asked.means(noisy, context.seed).items():
            metrics[f"noisy{rate:g}.{name}"] = found
            metrics[f"lost{rate:g}.{name}"] = lost[name]
            before = metrics[f"clean.{name}"]
            rows.append([f"{rate:.0%}", name, f"{before:.3f}".split()[0], f"{found.value:.3f}"])
            rows[-1] += [f"{lost[name].value:+.3f}", f"{lost[name].low:+.3f} to {lost[name].high:+.3f}"]
        kept += [{**record, "rate": rate} for record in noisy]
    return Result("robustness", VERSION, metrics, kept, " ".join(PROTOCOL.split()), rows)


def _scored(items: list[dict[str, Any]], asked: list[str], who: Any, what: str) -> list[dict[str, Any]]:
    answers = _asked.ask(who, asked, what)
    return [{**score(item, a), "question": q} for item, q, a in zip(items, asked, answers, strict=True)]


def example(folder: Any) -> tuple[Config, list[tuple[SuiteContext, dict[str, float]]]]:
    """A fixture: an assistant that reads through any noise, and one that understands clean questions only."""
    from . import _example

    items = _example.questions(folder)
    right = SuiteContext(folder, answerer=_example.Scripted(items, right=True, noise=True))
    wrong = SuiteContext(folder, answerer=_example.Scripted(items, right=False, noise=True))
    brittle = SuiteContext(folder, answerer=_example.Scripted(items, right=True))
    best = {"clean.correct": 1.0, "noisy1.correct": 1.0, "lost1.correct": 0.0}
    worst = {"clean.correct": 0.0, "noisy1.correct": 0.0, "lost1.correct": 0.0}
    lost = {"clean.f1": 1.0, "noisy1.f1": 0.0, "lost1.f1": 1.0, "lost1.right_passage": 1.0}
    return Config(rates=[1.0]), [(right, best), (wrong, worst), (brittle, lost)]
