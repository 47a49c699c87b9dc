"""A model opened by path or name, also where the path is an adapter's: its base is opened and the adapter put on.

What was opened becomes something to use by its kind (`usable`): what reads, what writes, and what its head says."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..adapters import _attached, _folder
from ..base import files
from ..hub import directory, sentence
from ..hub.presets import family_module
from ..infer.encoder import TextEncoder
from ..infer.language_model import LanguageModel
from ..infer.opened import Opened
from ..infer.text_to_text import TextToText
from ..infer.writing import ids_of
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.transformer import Transformer
from ..quant.stored import packing_from


def load(name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None) -> directory.Loaded:
    """`hub.directory.load`, for quantised models and adapters too: the base with the adapter, under its folder's name.

    The tokenizer and the facts are the adapter's where its folder has them. Raises what the two raise.
    """
    folder = Path(name)
    if not _folder.is_adapter(folder):
        return directory.load(name, device=device, dtype=dtype, unpack=packing_from)
    opened = directory.load(_folder.base_of(folder), device=device, dtype=dtype, unpack=packing_from)
    put_on(opened, folder)
    return opened


def usable(opened: directory.Loaded) -> Opened:
    """What `mw.load` returns for a model, by its kind. Raises UserError, DamagedError for files beside it."""
    made = (opened.model, opened.tokenizer, opened.family, opened.config, opened.facts)
    if isinstance(opened.model, EncoderDecoder):
        return _writer(opened)
    says = sentence.read(opened.folder) if opened.folder is not None else None
    if says is not None or _reads_only(opened):
        return TextEncoder(*made, **asdict(says or sentence.Sentence()))
    return LanguageModel(*made, ends=_ends(opened))


def _writer(opened: directory.Loaded) -> Opened:
    """An encoder-decoder, or its encoder alone where it has no head."""
    model, rest = opened.model, (opened.tokenizer, opened.family, opened.config, opened.facts)
    if opened.config.head == "none":
        return TextEncoder(model.encoder, *rest)
    return TextToText(model, *rest, generation=opened.usage.generation)


def _reads_only(opened: directory.Loaded) -> bool:
    """True for an encoder of texts: one transformer, not causal."""
    text = isinstance(opened.model, Transformer) and hasattr(opened.config, "vocab_size")
    return text and not family_module(opened.family).shape(opened.config).causal


def _ends(opened: directory.Loaded) -> tuple[int, ...]:
    """What generation_config.json says that a text ends with."""
    return ids_of(opened.usage.generation, "eos_token_id", opened.config.vocab_size)


def put_on(opened: directory.Loaded, folder: str | Path, learn: bool = False) -> str:
    """Open an adapter's folder onto its base, and use it; returns its name. Raises UserError, DamagedError."""
    folder = Path(folder)
    name = _attached.name_of(folder)
    _folder.load(opened.model, opened.family, opened.config, folder, name=name, learn=learn)
    if (folder / _folder.FACTS).is_file():
        opened.facts = files.read_json(folder / _folder.FACTS)
    opened.folder = folder
    return name


def plain(
    name: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype | None = None
) -> directory.Loaded:
    """The same as one float model, an adapter merged into its weights.

    Raises UserError for a kind that cannot be merged, and for a quantised model.
    """
    folder = Path(name)
    adapter = _folder.is_adapter(folder)
    opened = directory.load(_folder.base_of(folder) if adapter else name, device=device, dtype=None)
    if adapter:
        put_on(opened, folder)
    for adapter in _attached.names(opened.model):
        _attached.absorb(opened.model, adapter)
    opened.model.to(dtype=dtype)
    return opened


def together(names: Sequence[str], open_one: Callable[[str], Any]) -> dict[str, Any]:
    """Each by its folder's name; adapters of one base share its weights, which are opened once with `open_one`."""
    bases: dict[str, Any] = {}
    found: dict[str, Any] = {}
    for name in names:
        adapter = _folder.is_adapter(name)
        base = _folder.base_of(name) if adapter else name
        key = str(Path(base).resolve()) if Path(base).is_dir() else base
        if key not in bases:
            bases[key] = open_one(base)
        model = bases[key]
        found[Path(name).name or "model"] = model.with_adapter(model.attach(name)) if adapter else model
    return found
