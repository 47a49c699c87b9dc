"""Where adapters can stand: the linear layers of a built model, by our names and by those of its Hugging Face twin.

A checkpoint may keep several of our matrices in one (GPT-2's c_attn holds query, key and value). PEFT sees that one
matrix, so it is one `Site` here with several `Place`s: they share what belongs to the input (LoRA's A), and each has
its own rows of what belongs to the output.

    transformer.h.0.attn.c_attn   a site, 3 D outputs
        stack.blocks.0.attention.query    its outputs 0 .. D - 1
        stack.blocks.0.attention.key      D .. 2 D - 1
        stack.blocks.0.attention.value    2 D .. 3 D - 1
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..base import folders
from ..base.config import Settings
from ..base.errors import UserError, nearest

MODELS = "modelworks.models"
ALL = "all-linear"
CONTAINER = "adapters"
"""The model's attribute under which what belongs to its adapters is kept."""
SHORT = {
    "q_proj": "query", "k_proj": "key", "v_proj": "value", "o_proj": "out", "out_proj": "out",
    "gate_proj": "gate", "up_proj": "up", "down_proj": "down", "fc1": "up", "fc2": "down",
}  # fmt: skip
"""The field's usual names for what every family has, whatever its own checkpoint calls it."""


class Wrapper(nn.Module):
    """What stands around a module of the base while adapters are attached."""

    base: nn.Module


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One of our layers inside a site; `rows` int64 [out] says where its outputs stand there (None: it is the site)."""

    ours: str
    inputs: int
    outputs: int
    rows: Tensor | None = None

    def take(self, stored: Tensor) -> Tensor:
        """Its part [out, ...] of what belongs to the site's outputs [total, ...]."""
        return stored if self.rows is None else stored[self.rows]


@dataclass(frozen=True, slots=True, eq=False)
class Site:
    """A linear layer as the checkpoint has it: `stored` is its module's name there, `total` counts its outputs."""

    stored: str
    total: int
    places: tuple[Place, ...]

    def put(self, parts: Mapping[str, Tensor], rest: Tensor) -> Tensor:
        """The site's [total, ...] from the parts of its places by our names; `rest` [total, ...] fills what is left."""
        out = rest.clone()
        for place in self.places:
            if place.ours in parts:
                out[slice(None) if place.rows is None else place.rows] = parts[place.ours].to(out)
        return out


@dataclass(slots=True, eq=False)
class Host:
    """A built model with what is needed to name its parts."""

    model: nn.Module
    family: str
    config: Settings
    names: dict[str, Any] = field(init=False)
    """Our parameter names and where each stands in a Hugging Face file."""

    def __post_init__(self) -> None:
        self.names = folders.find(MODELS, self.family).hf_names(self.config)

    @property
    def prefix(self) -> str:
        """What a name in a file may lack at its start."""
        return str(folders.find(MODELS, self.family).HF_PREFIX)

    def module(self, path: str) -> nn.Module:
        """The base's own module of that name, whatever was wrapped around it. Raises AttributeError."""
        found = self.model
        for part in path.split(".") if path else ():
            found = _bare(getattr(found, part))
        return found

    def modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The base's own modules by the names that they have when nothing is wrapped around them."""
        yield from _walk("", self.model)

    def sites(self) -> list[Site]:
        """Every linear layer of the stack. Heads and embeddings are none: their matrices are read without a call."""
        groups: dict[str, list[tuple[str, Any]]] = {}
        for name, stored in self.names.items():
            path, _, kind = name.rpartition(".")
            if kind == "weight" and not stored.stack and not {"head", "stem"} & set(path.split(".")):
                groups.setdefault(stored.name.removesuffix(".weight"), []).append((path, stored))
        return [made for stored, group in groups.items() if (made := self._site(stored, group)) is not None]

    def _site(self, stored: str, group: list[tuple[str, Any]]) -> Site | None:
        layers = [self.module(path) for path, _ in group]
        if not all(hasattr(layer, "in_features") and hasattr(layer, "out_features") for layer in layers):
            return None
        sizes: list[tuple[int, int]] = [(int(m.in_features), int(m.out_features)) for m in layers]  # type: ignore[arg-type]
        total = sum(outputs for _, outputs in sizes)
        places = []
        for (path, how), (inputs, outputs) in zip(group, sizes, strict=True):
            rows = None
            if how.cut is not None:
                index = torch.arange(total)
                parts = how.cut.split(index[None] if how.transpose else index[:, None])
                rows = parts[how.part].flatten()
            places.append(Place(path, inputs, outputs, rows))
        return Site(stored, total, tuple(places))

    def stored_modules(self) -> set[str]:
        """Every module of the Hugging Face twin that has a weight."""
        return {name.rpartition(".")[0] for stored in self.names.values() for name in stored.names()}


def _bare(module: nn.Module) -> nn.Module:
    while isinstance(module, Wrapper):
        module = module.base
    return module


def _walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    yield path, module
    for name, child in module.named_children():
        if name != CONTAINER:
            yield from _walk(f"{path}.{name}" if path else name, _bare(child))


def choose(sites: Sequence[Site], targets: str | Sequence[str]) -> list[Site]:
    """The sites, and of each the places, that are meant.

    `targets` is all-linear, a regular expression (a string: fits a whole name), or a list of names or their ends:
    ours (attention.query, query), the checkpoint's (c_attn, q_proj), or the usual short ones. Raises UserError
    naming what fits nothing.
    """
    if targets == ALL:
        return list(sites)
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise UserError(f"targets: '{targets}' is no regular expression ({error}); give a list of names.") from None
        chosen = _some(sites, lambda site, place: bool(pattern.fullmatch(place.ours) or pattern.fullmatch(site.stored)))
        if not chosen:
            raise UserError(f"targets: no linear layer of this model is called like '{targets}'; {_known(sites)}.")
        return chosen
    wanted: set[str] = set()
    for word in targets:
        found = _called(sites, word) or (_called(sites, SHORT[word]) if word in SHORT else set())
        if not found:
            ends = sorted({name.rsplit(".", 1)[-1] for site in sites for name in _names(site)})
            raise UserError(
                f"targets: '{word}' is no linear layer of this model{nearest(word, ends)}; {_known(sites)}."
            )
        wanted |= found
    if not wanted:
        raise UserError(f"targets: name at least one layer; {_known(sites)}.")
    return _some(sites, lambda site, place: place.ours in wanted)


def _names(site: Site) -> list[str]:
    return [site.stored, *(place.ours for place in site.places)]


def _called(sites: Iterable[Site], word: str) -> set[str]:
    """Our names of the places whose name, in our words or the checkpoint's, is `word` or ends with it."""
    return {
        place.ours
        for site in sites
        for place in site.places
        if any(name == word or name.endswith(f".{word}") for name in (place.ours, site.stored))
    }


def present(sites: Sequence[Site], words: Sequence[str]) -> list[str]:
    """Those of our usual names that this model has."""
    return [word for word in words if _called(sites, word)]


def ours(sites: Iterable[Site]) -> list[str]:
    """Our names of all their places."""
    return [place.ours for site in sites for place in site.places]


def _some(sites: Iterable[Site], keep: Any) -> list[Site]:
    chosen = []
    for site in sites:
        places = tuple(place for place in site.places if keep(site, place))
        if places:
            chosen.append(Site(site.stored, site.total, places))
    return chosen


def _known(sites: Iterable[Site]) -> str:
    ends = sorted({place.ours.rsplit(".", 1)[-1] for site in sites for place in site.places})
    return f"it has {', '.join(ends)}"


def by_pattern(patterns: Mapping[str, Any], site: Site, default: Any) -> Any:
    """What the first pattern that fits the end of one of the site's names says (PEFT's rule), else `default`."""
    for pattern, value in patterns.items():
        if any(re.match(rf"(.*\.)?({pattern})$", name) for name in _names(site)):
            return value
    return default
