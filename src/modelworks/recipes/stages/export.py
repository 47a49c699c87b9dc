"""export: a model directory to hand over, with the passages beside it where it should answer from documents."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...base import files
from ...base.config import Settings
from ...base.device import DTYPES
from ...base.errors import UserError
from ...data import lines
from ...data.steps.passages import FILE
from ...hub import directory
from ..artefact import Job

ABOUT = "assistant.json"


class Config(Settings):
    model: str
    """The model to hand over."""
    passages: str | None = None
    """Stage or folder with passages.sqlite: the result answers from them, each answer checked."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Number format of the weights on disk."""
    title: str = ""
    """What the chat page calls it."""
    examples: list[str] = Field(default_factory=list)
    """Questions that the chat page offers (none: three held-out ones of different kinds, where there are any)."""


REFERENCES = ("model", "passages")


def run(config: Config, job: Job) -> dict[str, Any]:
    """Copy weights (in `dtype`), tokenizer and passages into one directory that `modelworks serve` opens."""
    opened = directory.load(job.input("model"), dtype=DTYPES[config.dtype])
    directory.save(job.folder, opened.model, opened.family, opened.config, opened.tokenizer, dict(opened.facts))
    parameters = sum(p.numel() for p in opened.model.parameters())
    metrics: dict[str, Any] = {"parameters": parameters}
    if "passages" in job.inputs:
        source = job.input("passages") / FILE
        if not source.is_file():
            raise UserError(f"{source}: there are no passages here; run prepare with the step passages first.")
        with files.disk_errors(job.folder):
            shutil.copyfile(source, job.folder / FILE)
        metrics["passage_bytes"] = source.stat().st_size
        examples = config.examples or _held_out(job.input("passages") / "questions" / "test.jsonl.zst")
        files.write_json(job.folder / ABOUT, {"title": config.title or job.name, "examples": examples})
    return metrics


def _held_out(path: Path) -> list[str]:
    """Three questions that no training saw, each of another kind; [] where there is no such file."""
    by_kind: dict[str, str] = {}
    for item in lines.read(path) if path.is_file() else ():
        by_kind.setdefault(str(item.get("kind")), str(item["question"]))
    return [by_kind[kind] for kind in sorted(by_kind, key=lambda kind: (kind == "unanswerable", kind))][-3:]
