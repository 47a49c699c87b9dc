"""Presets: every family's named configurations, and a fresh model from a name or from settings."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

from torch import nn

from ..base import folders
from ..base.config import Settings
from ..base.config import build as build_settings
from ..base.errors import UserError, nearest

MODELS = "modelworks.models"


class Built(NamedTuple):
    """A fresh model with the names it needs to be saved."""

    model: nn.Module
    family: str
    config: Settings


@functools.cache
def presets() -> dict[str, str]:
    """Preset name -> family, in the order of the families' files."""
    return {name: family for family in folders.names(MODELS) for name in family_module(family).PRESETS}


def family_module(family: str) -> ModuleType:
    """The module of a family. Raises UserError with the nearest name when there is none."""
    return folders.find(MODELS, family)


def preset(name: str) -> tuple[str, Settings]:
    """Family and configuration of a preset. Raises UserError with the nearest name when there is none."""
    family = owner(name)
    if family is None:
        known = list(presets())
        raise UserError(f"'{name}' is not a preset{nearest(name, known)}; `modelworks ls presets` lists them.")
    return family, family_module(family).PRESETS[name]


def owner(name: str) -> str | None:
    """The family of a preset, None where there is none: first those that it is called after, since all take 0.2 s."""
    called = name.replace("-", "_")
    after = sorted((family for family in folders.names(MODELS) if called.startswith(family)), key=len, reverse=True)
    for family in after:
        if name in family_module(family).PRESETS:
            return family
    return presets().get(name)


def resolve(wanted: str | Mapping[str, Any], where: str = "model", **fixed: Any) -> tuple[str, Settings]:
    """Family and configuration of a preset's name, or of settings.

    Settings are `{"preset": name, ...}` or `{"family": name, ...}` with the fields of that family's Config
    beside; `fixed` (the tokenizer's vocab_size, say) win over both. Raises UserError.
    """
    settings = {"preset": wanted} if isinstance(wanted, str) else dict(wanted)
    if ("preset" in settings) == ("family" in settings):
        raise UserError(f"{where}: give either a preset or a family, for instance preset: qwen3-nano.")
    if "preset" in settings:
        family, base = preset(str(settings.pop("preset")))
        settings = base.model_dump() | settings
    else:
        family = str(settings.pop("family"))
    return family, build_settings(family_module(family).Config, settings | fixed, where)


def build(wanted: str | Mapping[str, Any], where: str = "model", **fixed: Any) -> Built:
    """A fresh model; the arguments are those of `resolve`. Weights come from torch's generator as it stands."""
    family, config = resolve(wanted, where, **fixed)
    return Built(family_module(family).build(config), family, config)
