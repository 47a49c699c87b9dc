"""evaluate: suites over one model or several, with intervals, paired differences and baselines, item by item."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ...base import config as settings
from ...base import files, folders
from ...base.config import Settings
from ...base.device import choose_device, set_threads
from ...base.errors import UserError, nearest
from ...base.log import say
from ...data.grounding import Answer
from ...data.retrieve import Passages
from ...data.steps.passages import FILE
from ...evaluate.context import Result, SuiteContext
from ...evaluate.intervals import Interval, paired
from ...hub import directory
from ...infer.grounded import Assistant, Quoting
from .. import opening
from ..artefact import Job

SUITES = "modelworks.evaluate.suites"
NO_MODEL = "no model, first passage quoted"
# What is compared between one model and the next: suite -> scores of its items.
COMPARED = {
    "perplexity": (),
    "questions": ("correct", "f1", "right_passage"),
    "preferences": ("preferred",),
    "robustness": (),
}
SHOWN = {  # the columns of each suite's table, in order
    "perplexity": ("bits_per_byte", "perplexity", "loss"),
    "questions": (
        "right_passage", "correct", "exact", "f1", "unsupported", "own", "quoted", "declined", "declined_rightly",
        "raw_supported",
    ),
    "preferences": ("preferred", "preferred_per_token", "margin"),
}  # fmt: skip


class Config(Settings):
    model: str | list[str]
    """The model to evaluate, or several."""
    compare: Annotated[list[str], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)] = Field(
        default_factory=list
    )
    """Models beside it, in the order of their making: each is compared with the one after it."""
    data: str
    """Folder with questions, preferences and passages (or a corpus, where perplexity is all that is asked)."""
    corpus: str | None = None
    """Corpus whose held-out text is scored, where `data` is not that corpus."""
    suites: dict[str, dict[str, Any] | None] | list[str] | str
    """What to score, by name, each with its settings; `models: [...]` limits a suite to some of the models."""
    max_len: int = Field(512, ge=8)
    """Window in tokens where text is scored."""
    device: str = "auto"
    """Where to compute."""


REFERENCES = ("compare", "model", "data", "corpus")


def run(config: Config, job: Job) -> dict[str, Any]:
    """Write scores.json (tables, differences, protocols) and items.jsonl; returns the last model's numbers."""
    set_threads()
    names = [*config.compare, *([config.model] if isinstance(config.model, str) else config.model)]
    paths = [*job.inputs.get("compare", []), *job.inputs["model"]]
    wanted = _suites(config, names)
    found: dict[str, dict[str, Result]] = {suite: {} for suite in wanted}
    for name, path in zip(names, paths, strict=True):
        label = Path(name).name
        opened = opening.load(path, device=choose_device(config.device))
        answerer = _answerer(opened, job.input("data"))
        for suite, (chosen, models) in wanted.items():
            if name in models:
                say(f"{job.name}: {suite} of {label}")
                context = _context(config, job, opened, suite)
                context.answerer = answerer
                found[suite][label] = folders.find(SUITES, suite).run(chosen, context)
    if "questions" in found and (passages := job.input("data") / FILE).is_file():
        context = SuiteContext(job.input("data"), seed=job.seed, answerer=Quoting(Passages(passages)))
        chosen, _ = wanted["questions"]
        found["questions"] = {NO_MODEL: folders.find(SUITES, "questions").run(chosen, context), **found["questions"]}
    scores = {suite: _summary(suite, results, job.seed) for suite, results in found.items() if results}
    files.write_json(job.folder / "scores.json", scores)
    _write_items(job.folder / "items.jsonl", found)
    return _metrics(found)


def _suites(config: Config, names: list[str]) -> dict[str, tuple[Settings, list[str]]]:
    """Suite -> its checked settings and the models that it scores. Raises UserError for a name that is not there."""
    asked = config.suites
    plain = asked if isinstance(asked, dict) else dict.fromkeys([asked] if isinstance(asked, str) else asked, None)
    out = {}
    for suite, given in plain.items():
        values = dict(given or {})
        models = values.pop("models", names)
        for model in models:
            if model not in names:
                raise UserError(f"suite {suite}: '{model}' is not among the models here{nearest(model, names)}.")
        module = folders.find(SUITES, suite)
        out[suite] = (settings.build(module.Config, values, f"suite {suite}"), list(models))
    return out


def _context(config: Config, job: Job, opened: directory.Loaded, suite: str) -> SuiteContext:
    data = job.input("data")
    text = job.input("corpus") if "corpus" in job.inputs and suite == "perplexity" else data
    context = SuiteContext(text, opened.model, opened.tokenizer, max_len=config.max_len, seed=job.seed)
    return context


class Remembering:
    """An assistant that is asked each question once, however many suites ask it (it always answers the same)."""

    def __init__(self, assistant: Assistant) -> None:
        self.assistant, self.known = assistant, dict[str, Answer]()

    def answer_many(self, questions: Sequence[str]) -> list[Answer]:
        """One answer a question, in order."""
        new = [question for question in dict.fromkeys(questions) if question not in self.known]
        self.known |= zip(new, self.assistant.answer_many(new), strict=True)
        return [self.known[question] for question in questions]


def _answerer(opened: directory.Loaded, data: Path) -> Remembering | None:
    """Who answers from the passages in `data`; None where there are none."""
    if not (data / FILE).is_file():
        return None
    made = (opened.model, opened.tokenizer, opened.family, opened.config, opened.facts)
    return Remembering(Assistant(*made, passages=Passages(data / FILE)))


def _summary(suite: str, results: dict[str, Result], seed: int) -> dict[str, Any]:
    """A suite for scores.json: a row a model (and a baseline), differences between neighbours, how it was done."""
    rows = [row for label, result in results.items() for row in _rows(suite, label, result)]
    first = next(iter(results.values()))
    baselines = {name: value for name, value in first.metrics.items() if suite == "perplexity" and "." in name}
    rows += [
        {"model": n.removesuffix(".bits_per_byte").replace("_", " "), "bits_per_byte": _plain(v)}
        for n, v in baselines.items()
    ]
    labels = list(results)
    differences = [
        {"difference": f"{later} against {earlier}", "measure": measure, "by": _plain(by)}
        for earlier, later in pairwise(labels)
        for measure, by in _differences(suite, results[earlier], results[later], seed).items()
    ]
    return {
        "version": first.version,
        "protocol": first.protocol,
        "rows": rows,
        "comparisons": differences,
        "metrics": {label: {n: _plain(v) for n, v in result.metrics.items()} for label, result in results.items()},
    }


def _rows(suite: str, label: str, result: Result) -> list[dict[str, Any]]:
    if suite != "robustness":
        names = SHOWN.get(suite) or [n for n in result.metrics if "." not in n]
        return [{"model": label, **{n: _plain(result.metrics[n]) for n in names if n in result.metrics}}]
    rates = sorted(
        {
            n.split(".correct")[0].removeprefix("noisy")
            for n in result.metrics
            if n.startswith("noisy") and n.endswith(".correct")
        }
    )
    out = []
    for rate in rates:
        row: dict[str, Any] = {"model": label, "typing errors": f"{float(rate):.0%} of words"}
        for measure in ("correct", "right_passage"):
            for part in ("clean", f"noisy{rate}", f"lost{rate}"):
                if (name := f"{part}.{measure}") in result.metrics:
                    row[f"{measure.replace('_', ' ')} {part.removesuffix(rate)}"] = _plain(result.metrics[name])
        out.append(row)
    return out


def _differences(suite: str, before: Result, after: Result, seed: int) -> dict[str, Interval]:
    """Paired differences over the items that both have; of robustness, how much less is lost."""
    if suite == "robustness":
        return _less_lost(before, after, seed)
    old, new = ({item["id"]: item for item in result.items} for result in (before, after))
    out = {}
    for measure in COMPARED.get(suite, ()):
        shared = [i for i in new if i in old and None not in (new[i].get(measure), old[i].get(measure))]
        if shared:
            out[measure] = paired(
                [float(new[i][measure]) for i in shared], [float(old[i][measure]) for i in shared], seed
            )
    return out


def _less_lost(before: Result, after: Result, seed: int) -> dict[str, Interval]:
    out = {}
    for rate in sorted({item["rate"] for item in after.items if item["rate"]}):
        columns = [{(i["id"], i["rate"]): float(i["correct"]) for i in result.items} for result in (before, after)]
        ids = [i["id"] for i in after.items if not i["rate"]]
        lost = [[column[i, 0.0] - column[i, rate] for i in ids] for column in columns]
        out[f"correct lost at {rate:.0%} typing errors"] = paired(lost[1], lost[0], seed)
        noisy = [[column[i, rate] for i in ids] for column in columns]
        out[f"correct at {rate:.0%} typing errors"] = paired(noisy[1], noisy[0], seed)
    return out


def _plain(value: Interval | float) -> Any:
    return value.as_dict() if isinstance(value, Interval) else value


def _write_items(path: Path, found: dict[str, dict[str, Result]]) -> None:
    lines = [
        json.dumps({"suite": suite, "model": label, **item}, ensure_ascii=False)
        for suite, results in found.items()
        for label, result in results.items()
        for item in result.items
    ]
    files.write_text(path, "\n".join(lines) + "\n")


def _metrics(found: dict[str, dict[str, Result]]) -> dict[str, Any]:
    """The numbers of the last model that each suite scored."""
    out: dict[str, Any] = {}
    for suite, results in found.items():
        if results:
            values = list(results.values())[-1].values()
            names: Sequence[str] = [n for n in SHOWN.get(suite, ()) if n in values] or list(values)
            out |= {f"{suite}.{name}": round(float(values[name]), 5) for name in names}
    return out
