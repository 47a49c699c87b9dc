"""attack: ask a model the held-out questions with typing errors, or score it with its embeddings perturbed."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ...base.config import Settings
from ..artefact import Job
from . import evaluate


class Config(Settings):
    model: str
    """The model to attack."""
    data: str
    """Folder with the questions and their passages."""
    rates: list[float] | float = Field(default_factory=lambda: [0.1, 0.3])
    """Shares of the words that get a typing error."""
    limit: int = Field(0, ge=0)
    """At most so many questions (0: all)."""


REFERENCES = ("model", "data")


def run(config: Config, job: Job) -> dict[str, Any]:
    """Write scores.json and items.jsonl: clean, attacked, lost, question by question."""
    rates = config.rates if isinstance(config.rates, list) else [config.rates]
    suites: dict[str, Any] = {"robustness": {"rates": rates, "limit": config.limit}}
    return evaluate.run(evaluate.Config(model=config.model, data=config.data, suites=suites), job)
