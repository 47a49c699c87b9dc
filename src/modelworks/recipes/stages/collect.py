"""collect: documents from sources (pydoc:, files:) into a corpus with its ledger."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from ...base.config import Settings
from ...data import collect
from ..artefact import Job


class Config(Settings):
    sources: list[str] = Field(alias="from")
    """Where documents come from, as scheme:place."""


REFERENCES: tuple[str, ...] = ()


def sources(config: Config) -> list[str]:
    """What to look at to see whether the sources changed."""
    return config.sources


def run(config: Config, job: Job) -> dict[str, Any]:
    """Write the corpus; its ledger says what came, what was left out and why."""
    ledger = collect.collect(config.sources, job.folder)
    account = ledger.accounts[-1]
    left = sum(count.documents for count in account.left.values())
    return {"documents": account.kept.documents, "bytes": account.kept.bytes, "left_out": left}
