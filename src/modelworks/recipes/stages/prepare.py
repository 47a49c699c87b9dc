"""prepare: documents through steps (clean, split, ...), and what is made from them (passages, questions, pairs)."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ...base import config as settings
from ...base import folders
from ...base.config import Settings
from ...data import corpus, prepare
from ..artefact import Job


class Config(Settings):
    source: str = Field(alias="from")
    """Corpus to start from: a stage or a folder."""
    steps: list[str | dict[str, dict[str, Any] | None]]
    """Steps in order, each a name or a name with its settings; `modelworks ls steps` lists them."""


REFERENCES = ("source",)


def run(config: Config, job: Job) -> dict[str, Any]:
    """First the steps that change documents, then those that make something of them."""
    cleaning, making = _sorted(config.steps)
    metrics: dict[str, Any] = {}
    source = job.input("source")
    if cleaning:
        ledger = prepare.prepare(source, cleaning, job.folder, job.seed)
        metrics |= ledger_metrics(ledger)
        source = job.folder
    for name, values in making:
        module = folders.find(prepare.STEPS, name)
        made = module.build(source, job.folder, settings.build(module.Config, values, f"step {name}"), job.seed)
        metrics |= {f"{name}.{key}": value for key, value in made.items()}
    return metrics


def _sorted(steps: list[Any]) -> tuple[list[Any], list[tuple[str, dict[str, Any]]]]:
    """Steps that change documents (`apply`), and steps that make something else from them (`build`)."""
    cleaning, making = [], []
    for step in steps:
        name, values = (step, {}) if isinstance(step, str) else next(iter(step.items()))
        if hasattr(folders.find(prepare.STEPS, name), "build"):
            making.append((name, values or {}))
        else:
            cleaning.append(step)
    return cleaning, making


def ledger_metrics(ledger: corpus.Ledger) -> dict[str, Any]:
    """How many documents and bytes a corpus has, in all and by split."""
    documents = sum(count.documents for count in ledger.splits.values())
    size = sum(count.bytes for count in ledger.splits.values())
    by_split = {f"{split}_documents": count.documents for split, count in ledger.splits.items() if split}
    return {"documents": documents, "bytes": size, **by_split}
