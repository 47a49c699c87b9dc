"""Adapters on a built model: attached, switched, merged, taken off. The model's own files never hear of them.

attach(model, "qwen3", config, "lora", {"rank": 8}, name="support")    only the adapter learns from here on
use(model, "support"); use(model, None); use(model, ["support", None, "sales"])     all rows, none, each row its own
merge(model, "support"); unmerge(model)                                 and back, bit for bit
detach(model)                                                           the base again, bit for bit
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ..base import folders
from ..base.config import Settings
from ..base.config import build as build_settings
from ..base.errors import UserError, nearest
from ..nn.layout import Layout
from . import _virtual
from ._sites import CONTAINER, Host
from ._wrapped import Adapted, Built, Switch

ADAPTERS = "modelworks.adapters"
Which = str | None | Sequence[str | None]
"""One adapter for all rows (None: the base alone), or one (or None) for each row of the batch."""


@dataclass(slots=True, eq=False)
class Attached:
    """One adapter on a model: its kind, settings, and what was made for it."""

    kind: str
    settings: Settings
    built: Built

    @property
    def module(self) -> ModuleType:
        """The kind's file. (Found anew each time: a module cannot be copied along with a model.)"""
        return folders.find(ADAPTERS, self.kind)


class Adapters(nn.Module):
    """All that belongs to a model's adapters; it stands on the model under `adapters` while there are any."""

    def __init__(self, host: Host) -> None:
        super().__init__()
        self.host, self.switch = host, Switch()
        self.attached: dict[str, Attached] = {}
        self.shared = nn.ModuleDict()
        self.trained = [p for p in host.model.parameters() if p.requires_grad]
        """What learned before anything was attached."""
        self.virtual = _virtual.Virtual(self.switch, self._source)
        self.hook: Any = None

    def _source(self, name: str | None) -> Any:
        """The virtual tokens of that name, if it has any."""
        found = self.shared[name] if name is not None and name in self.shared else None
        return found if hasattr(found, "keys_values") else None

    def parameters_of(self, name: str) -> list[nn.Parameter]:
        """The adapter's own weights, each once."""
        built = self.attached[name].built
        owners = [*built.parts.values(), *([built.shared] if built.shared is not None else [])]
        return list({id(p): p for owner in owners for p in owner.parameters()}.values())


def attach(
    model: nn.Module,
    family: str,
    config: Settings,
    kind: str,
    settings: Mapping[str, Any] | Settings | None = None,
    *,
    name: str = "default",
    seed: int = 0,
) -> None:
    """Put a fresh adapter of `kind` on a built model and use it; from here on only adapters' weights learn.

    `settings` are those of the kind's Config; equal seeds give equal weights. Raises UserError for an unknown kind,
    setting or target, a name that is taken, or a model that the kind is not for.
    """
    module = folders.find(ADAPTERS, kind)
    chosen = build_settings(module.Config, dict(settings or {}), kind)
    if not re.fullmatch(r"[\w-]{1,100}", name) or hasattr(nn.ModuleDict, name) or name == "training":
        raise UserError(f"'{name}' cannot be an adapter's name; use another, of letters, digits, - and _.")
    existing = _of(model)
    if existing is not None and name in existing.attached:
        raise UserError(f"this model has an adapter called '{name}'; choose another name, or take that one off.")
    if existing is not None:
        _unmerged(existing)
    host = existing.host if existing is not None else Host(model, family, config)
    built: Built = module.build(host, chosen, torch.Generator().manual_seed(seed))
    adapters = existing or Adapters(host)
    if existing is None:
        model.add_module(CONTAINER, adapters)
        for parameter in adapters.trained:
            parameter.requires_grad_(False)
    adapters.attached[name] = Attached(kind, chosen, built)
    _place(adapters, name, built)
    use(model, name)


def _place(adapters: Adapters, name: str, built: Built) -> None:
    device = next(adapters.host.model.parameters()).device
    for path, part in built.parts.items():
        parent, _, last = path.rpartition(".")
        owner = adapters.host.module(parent)
        current = getattr(owner, last)
        if not isinstance(current, Adapted):
            current = Adapted(current, adapters.switch)
            current.training = adapters.host.model.training
            setattr(owner, last, current)
        current.parts[name] = part.to(device)
        part.train(adapters.host.model.training)
    if built.shared is not None:
        adapters.shared[name] = built.shared.to(device)
    if adapters.hook is None and adapters._source(name) is not None:
        _see_virtual(adapters)


def _see_virtual(adapters: Adapters) -> None:
    """Let every attention see virtual tokens, and the text begin after them."""
    model, layers = _virtual.check(adapters.host)
    for layer in layers:
        layer.mixer = _virtual.Prefixed(layer.mixer, model, adapters.virtual, layer.layer)

    adapters.hook = model.stem.register_forward_pre_hook(_BeginAfter(adapters))


class _BeginAfter:
    """Moves the positions of a pass behind its virtual tokens. (An object, so that a copied model gets its own.)"""

    def __init__(self, adapters: Adapters) -> None:
        self.adapters = adapters

    def __call__(self, stem: nn.Module, inputs: tuple[Any, ...]) -> None:
        layout: Layout = inputs[1]
        prefix = self.adapters.virtual.of(self.adapters.host.model, layout)  # type: ignore[arg-type]
        if prefix is not None:
            layout.shift(prefix.count if prefix.lengths is None else prefix.lengths)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take one adapter off, or all: without any the model is the base again, bit for bit, and learns as before.

    Raises UserError where there is none of that name.
    """
    adapters = _of(model)
    if adapters is None:
        return
    unmerge(model)
    for one in [name] if name is not None else list(adapters.attached):
        _known(adapters, one)
        built = adapters.attached.pop(one).built
        for path in built.parts:
            parent, _, last = path.rpartition(".")
            owner = adapters.host.module(parent)
            wrapper = getattr(owner, last)
            del wrapper.parts[one]
            if not wrapper.parts:
                setattr(owner, last, wrapper.base)
        if one in adapters.shared:
            del adapters.shared[one]
    if name is None or not adapters.attached:
        if adapters.hook is not None:
            adapters.hook.remove()
            for layer in _virtual.check(adapters.host)[1]:
                layer.mixer = layer.mixer.base  # type: ignore[assignment]
        delattr(model, CONTAINER)
        for parameter in adapters.trained:
            parameter.requires_grad_(True)
    elif adapters.switch.rows is not None or adapters.switch.active == name:
        use(model, None)


def use(model: nn.Module, which: Which) -> None:
    """Say which adapter works from now on: for all rows, or (a list) for each row of the batches that come.

    Raises UserError for a name that is not attached, or another than the one that is merged.
    """
    adapters = _of(model)
    wanted = {which} if which is None or isinstance(which, str) else set(which)
    if adapters is None:
        if wanted - {None}:
            raise UserError(f"this model has no adapters, so none called '{next(iter(wanted - {None}))}'.")
        return
    for name in wanted - {None}:
        _known(adapters, str(name))
    merged = adapters.switch.merged
    if merged is not None and wanted != {merged}:
        raise UserError(f"the adapter '{merged}' is merged into the weights; unmerge it before another is used.")
    adapters.switch.set(which, next(model.parameters()).device)


@contextlib.contextmanager
def using(model: nn.Module, which: Which) -> Iterator[None]:
    """`use`, inside the block only."""
    before = in_use(model)
    use(model, which)
    try:
        yield
    finally:
        use(model, before)


def merge(model: nn.Module, name: str) -> None:
    """Put an adapter's change into the base's weights, which then do alone what both did, at the base's speed.

    The weights as they were are kept for `unmerge`. Raises UserError for a kind that cannot be merged, a quantised
    base, or while another is merged.
    """
    adapters = _of(model)
    if adapters is None:
        raise UserError(f"this model has no adapters, so none called '{name}'.")
    _known(adapters, name)
    _unmerged(adapters)
    attached = adapters.attached[name]
    if not attached.module.MERGES:
        raise UserError(
            f"an adapter of kind {attached.kind} cannot be merged: what it does depends on the text; "
            "keep it beside its base."
        )
    wrappers = [_wrapper(adapters, path) for path in attached.built.parts]
    for wrapper in wrappers:
        wrapper.check_merge(name)
    for wrapper in wrappers:
        wrapper.merge(name)
    adapters.switch.merged = name
    use(model, name)


def unmerge(model: nn.Module) -> None:
    """Give the base its weights back, bit for bit, if something is merged into them."""
    adapters = _of(model)
    if adapters is None or adapters.switch.merged is None:
        return
    for path in adapters.attached[adapters.switch.merged].built.parts:
        _wrapper(adapters, path).unmerge()
    adapters.switch.merged = None


def absorb(model: nn.Module, name: str) -> None:
    """Merge for good: the model is a plain one again, and does what it did with the adapter. Raises as `merge` does."""
    merge(model, name)
    adapters = model.get_submodule(CONTAINER)
    assert isinstance(adapters, Adapters)
    for path in adapters.attached[name].built.parts:
        _wrapper(adapters, path).kept = {}
    adapters.switch.merged = None
    detach(model)


def names(model: nn.Module) -> list[str]:
    """The adapters that a model has."""
    adapters = _of(model)
    return [] if adapters is None else list(adapters.attached)


def in_use(model: nn.Module) -> Which:
    """What `use` was told last."""
    adapters = _of(model)
    return None if adapters is None else adapters.switch.rows or adapters.switch.active


def name_of(folder: str | Path) -> str:
    """A name for the adapter in a folder: the folder's own, in letters, digits, - and _."""
    return re.sub(r"[^\w-]+", "-", Path(folder).name).strip("-")[:100] or "default"


def places(model: nn.Module, which: Which) -> int:
    """How many places of the context the adapters in use take (virtual tokens)."""
    adapters = _of(model)
    if adapters is None:
        return 0
    wanted = [which] if which is None or isinstance(which, str) else which
    return max((int(source.count) for name in wanted if (source := adapters._source(name)) is not None), default=0)


def weights(model: nn.Module, name: str) -> list[Tensor]:
    """An adapter's own weights. Raises UserError where there is none of that name."""
    adapters = _of(model)
    if adapters is None:
        raise UserError(f"this model has no adapters, so none called '{name}'.")
    _known(adapters, name)
    return list(adapters.parameters_of(name))


def _of(model: nn.Module) -> Adapters | None:
    found = getattr(model, CONTAINER, None)
    return found if isinstance(found, Adapters) else None


def _known(adapters: Adapters, name: str) -> None:
    if name not in adapters.attached:
        known = list(adapters.attached)
        raise UserError(f"there is no adapter '{name}' on this model{nearest(name, known)}; it has {', '.join(known)}.")


def _unmerged(adapters: Adapters) -> None:
    if adapters.switch.merged is not None:
        raise UserError(f"the adapter '{adapters.switch.merged}' is merged into the weights; unmerge it first.")


def _wrapper(adapters: Adapters, path: str) -> Adapted:
    parent, _, last = path.rpartition(".")
    found = getattr(adapters.host.module(parent), last)
    assert isinstance(found, Adapted)
    return found
