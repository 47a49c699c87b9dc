"""A model opened by path or name, also where the path is an adapter's: its base is opened and the adapter put on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapters import _attached, _folder
from ..base import files
from ..hub import directory
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
