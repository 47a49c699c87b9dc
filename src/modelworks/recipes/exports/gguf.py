"""gguf: one file with weights, tokenizer and chat template for llama.cpp and what builds on it (Ollama, LM Studio)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...base.errors import UserError
from ...base.log import say
from ...hub import gguf, tensors
from ...hub.presets import family_module
from ...infer.language_model import LanguageModel
from .. import opening
from . import _llama, _probes

if TYPE_CHECKING:
    from ..stages.export import Config

DTYPES = tuple(gguf.FORMATS)
NEXT = f"llama-server -m {{out}}/{gguf.FILE}"


def write(source: Path, folder: Path, config: Config) -> dict[str, Any]:
    """Write `model.gguf`, read every tensor back, and continue prompts in llama.cpp where there is one."""
    opened = opening.plain(source, dtype=torch.float32)
    if opened.tokenizer is None:
        raise UserError(f"{source}: has no tokenizer.json, and a GGUF file needs one; copy it there.")
    if getattr(opened.config, "head", "language") != "language":
        raise UserError(
            f"{source}: llama.cpp continues texts and this model's head is another; export it with --to hf."
        )
    module = family_module(opened.family)
    settings, weights = module.to_hf(opened.config), tensors.gather(opened.model, module, opened.config)
    path = folder / gguf.FILE
    gguf.write(path, settings, weights, opened.tokenizer, name=source.resolve().name, dtype=config.dtype)
    back = gguf.compare(path, settings, weights)
    rounding = f"{back.relative:.2g} of the largest of its block ({gguf.FORMATS[config.dtype]} rounds)"
    say(f"checked: read back, {back.tensors} tensors differ by {rounding if back.absolute else '0'}")
    metrics: dict[str, Any] = {
        "parameters": sum(weight.numel() for weight in opened.model.parameters()),
        "bytes": path.stat().st_size,
        "tensors": back.tensors,
        "max_difference": back.absolute,
    }
    if _llama.place() is None:
        say(f"not run: there is no llama.cpp here; pip install llama-cpp-python, or let {_llama.PLACE} name one")
        return metrics
    ours = LanguageModel(opened.model, opened.tokenizer, opened.family, opened.config)
    found = _llama.check(path, ours, config.prompts or _probes.PROMPTS, config.new_tokens, config.dtype)
    say(
        f"checked: {found.engine} encodes {found.texts} of {found.texts} texts alike and continues prompts with "
        f"{found.same} of {found.tokens} greedy tokens the same ({found.nats:.1e} nats apart)"
    )
    return metrics | {
        "engine": found.engine,
        "texts_encoded_alike": found.texts,
        "greedy_tokens": found.tokens,
        "greedy_tokens_same": found.same,
        "nats_apart": found.nats,
    }
