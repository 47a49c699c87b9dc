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
from ..base.errors import UserError
from ..data.pixels import FILE, Preparation, preparation
from ..hub import directory, sentence
from ..hub.presets import family_module
from ..infer.encoder import TextEncoder
from ..infer.illustrated import Illustrated
from ..infer.language_model import LanguageModel
from ..infer.opened import Opened
from ..infer.speech import Speech
from ..infer.text_heads import GapFiller, Tagger, TextClassifier
from ..infer.text_to_text import TextToText
from ..infer.vision import Matcher, Vision
from ..infer.writing import ids_of
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.pair import Pair
from ..nn.stems import Tokens
from ..nn.vision_language import VisionLanguage
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
    model, used = opened.model, opened.usage
    made = (model, opened.tokenizer, opened.family, opened.config, opened.facts)
    if isinstance(model, EncoderDecoder):
        return _writer(opened)
    if isinstance(model, VisionLanguage):
        return Illustrated(*made, prepare=_prepare(opened, opened.config.image), generation=used.generation)
    if isinstance(model, Pair):
        pad = opened.tokenizer.special("pad_token") if opened.tokenizer is not None else None
        return Matcher(*made, prepare=_prepare(opened, opened.config.image), pad=pad)
    if not hasattr(opened.config, "vocab_size"):
        classes = {"labels": used.labels, "problem": used.problem}
        return Vision(model, *made[2:], prepare=_prepare(opened, opened.config), **classes)
    return _reader(opened) or LanguageModel(*made, ends=_ends(opened))


def _reader(opened: directory.Loaded) -> Opened | None:
    """A transformer that reads texts, by its head; None for a decoder that writes."""
    made = (opened.model, opened.tokenizer, opened.family, opened.config, opened.facts)
    head = getattr(opened.config, "head", None)
    says = sentence.read(opened.folder) if opened.folder is not None else None
    if says is None and head not in ("classes", "tokens", "masked_lm", "none"):
        causal = family_module(opened.family).shape(opened.config).causal
        return None if causal else TextEncoder(*made)
    settings = asdict(says or sentence.Sentence())
    kinds = {"classes": TextClassifier, "tokens": Tagger, "masked_lm": GapFiller}
    if head not in kinds:
        return TextEncoder(*made, **settings)
    return kinds[head](*made, labels=opened.usage.labels, problem=opened.usage.problem, **settings)


def _writer(opened: directory.Loaded) -> Opened:
    """An encoder-decoder of texts or of speech; its encoder alone where a model of texts has no head."""
    rest: Any = (opened.tokenizer, opened.family, opened.config, opened.facts)
    said = opened.usage.generation
    if not isinstance(opened.model.encoder.stem, Tokens):
        return Speech(opened.model, *rest, generation=said, hearing=opened.usage.processor("feature_extractor"))
    if opened.config.head == "none":
        return TextEncoder(opened.model.encoder, *rest)
    return TextToText(opened.model, *rest, generation=said)


def _prepare(opened: directory.Loaded, tower: Any) -> Preparation:
    """How images are made ready. Raises UserError where a model that needs its file has none."""
    said = opened.usage.processor("image_processor")
    if not said and tower is not opened.config and not opened.facts:
        raise UserError(f"{opened.folder}: has no {FILE}; copy the one that belongs to the model there.")
    return preparation(said, tower.image_size, tower.channels)


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
