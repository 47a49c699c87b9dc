"""export: a model to hand over, as a Hugging Face directory (with passages, where it answers from them), GGUF or ONNX.

A format is a file of `recipes/exports`; each runs what it wrote and says how far that is from the model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from ...base import files, folders
from ...base.config import Count, Settings
from ...base.errors import UserError
from ...data import lines
from ...data.steps.passages import FILE
from ..artefact import Job

ABOUT = "assistant.json"
FORMATS = "modelworks.recipes.exports"


class Config(Settings):
    model: str
    """The model to hand over."""
    passages: str | None = None
    """Stage or folder with passages.sqlite: the result answers from them, each answer checked."""
    to: str = "hf"
    """Format: hf (a directory for modelworks and transformers), gguf (llama.cpp), onnx (onnxruntime)."""
    dtype: Literal["float32", "bfloat16", "float16", "q8_0"] = "float32"
    """Number format of the weights on disk; q8_0 (a byte a weight) is for gguf only, onnx is float32."""
    prompts: list[str] = Field(default_factory=list)
    """Texts that llama.cpp continues to check a GGUF file (none: three in English, Chinese and Python)."""
    new_tokens: Count = 64
    """How many tokens it continues each by."""
    title: str = ""
    """What the chat page calls it."""
    examples: list[str] = Field(default_factory=list)
    """Questions that the chat page offers (none: three held-out ones of different kinds, where there are any)."""


REFERENCES = ("model", "passages")


def following(config: Config) -> str:
    """What to do with the artefact next; {out} is its folder."""
    return str(folders.find(FORMATS, config.to).NEXT)


def run(config: Config, job: Job) -> dict[str, Any]:
    """Write the model in the format wanted, try what was written, and put the passages beside it."""
    format = folders.find(FORMATS, config.to)
    if config.dtype not in format.DTYPES:
        known = ", ".join(format.DTYPES)
        raise UserError(f"--to {config.to} does not write {config.dtype}; it writes {known}.")
    if "passages" in job.inputs and config.to != "hf":
        raise UserError(f"passages go with --to hf only; leave them out with --to {config.to}.")
    metrics: dict[str, Any] = format.write(job.input("model"), job.folder, config)
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
