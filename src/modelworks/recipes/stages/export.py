"""export: a model to hand over, as a Hugging Face directory (with passages, or quantised), GGUF or ONNX.

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
from .. import opening, quantising
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
    quant: Literal["int8", "int8-dynamic", "int4", "int4-gptq", "int4-awq", "nf4"] | None = None
    """Quantise the matrices inside the blocks; what stays float is then bfloat16, unless a dtype is named."""
    calibration: str | None = None
    """Corpus or text file: calibrates int4-gptq and int4-awq, and its held-out part measures what was lost."""
    group: int = Field(64, ge=8)
    """Inputs that share a scale in the 4-bit methods; nf4 elsewhere has 64."""
    quant_head: bool = False
    """Quantise the head too (one that is tied to the embedding gets a matrix of its own)."""
    prompts: list[str] = Field(default_factory=list)
    """Texts that llama.cpp continues to check a GGUF file (none: three in English, Chinese and Python)."""
    new_tokens: Count = 64
    """How many tokens it continues each by."""
    title: str = ""
    """What the chat page calls it."""
    examples: list[str] = Field(default_factory=list)
    """Questions that the chat page offers (none: three held-out ones of different kinds, where there are any)."""


REFERENCES = ("model", "passages", "calibration")


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
    metrics: dict[str, Any] = (
        _quantised(config, job) if config.quant else format.write(job.input("model"), job.folder, config)
    )
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


def _quantised(config: Config, job: Job) -> dict[str, Any]:
    """Write the model quantised, measured against what it was."""
    if config.to != "hf" or config.dtype == "q8_0":
        raise UserError(f"--quant goes with --to hf and a float dtype; for --to {config.to} leave it out (dtype q8_0).")
    dtype = config.dtype if "dtype" in config.model_fields_set else "bfloat16"
    asked = quantising.Asked(str(config.quant), config.group, config.quant_head, dtype)
    calibration = job.input("calibration") if "calibration" in job.inputs else None
    source = job.input("model")
    return quantising.write(lambda: opening.plain(source), job.folder, asked, calibration, job.seed)


def _held_out(path: Path) -> list[str]:
    """Three questions that no training saw, each of another kind; [] where there is no such file."""
    by_kind: dict[str, str] = {}
    for item in lines.read(path) if path.is_file() else ():
        by_kind.setdefault(str(item.get("kind")), str(item["question"]))
    return [by_kind[kind] for kind in sorted(by_kind, key=lambda kind: (kind == "unanswerable", kind))][-3:]
