"""A module with adapters beside it, and the switch that says which of them is at work, for all rows or for each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base.errors import FailureError, UserError
from ._sites import Host, Site, Wrapper

Base = Callable[..., Tensor]


class Switch:
    """One for a model: None (the base alone), one adapter for all rows, or one (or None) for each row of a batch."""

    def __init__(self) -> None:
        self.active: str | None = None
        self.rows: tuple[str | None, ...] | None = None
        self.merged: str | None = None
        self._mixed: tuple[str | None, ...] | None = None
        self._groups: list[tuple[str | None, Tensor]] = []
        self._order: Tensor | None = None

    def set(self, which: str | Sequence[str | None] | None, device: torch.device) -> None:
        """Turn it; rows that all say the same are one for all."""
        if not (which is None or isinstance(which, str)):
            if len(set(which)) != 1:
                return self._mix(tuple(which), device)
            which = which[0]
        self.active, self.rows = which, None

    def _mix(self, rows: tuple[str | None, ...], device: torch.device) -> None:
        if rows != self._mixed:
            kinds = list(dict.fromkeys(rows))
            index = [torch.tensor([i for i, row in enumerate(rows) if row == kind], device=device) for kind in kinds]
            self._groups = list(zip(kinds, index, strict=True))
            self._order = torch.cat(index).argsort()
        self.active, self.rows, self._mixed = None, rows, rows

    @contextlib.contextmanager
    def only(self, name: str | None) -> Iterator[None]:
        """One for all rows, inside the block."""
        before = self.active, self.rows
        self.active, self.rows = name, None
        try:
            yield
        finally:
            self.active, self.rows = before

    @property
    def groups(self) -> list[tuple[str | None, Tensor]]:
        """Each name with the rows int64 [n] that it is for."""
        return self._groups

    def in_order(self, parts: Sequence[Tensor]) -> Tensor:
        """The groups' results [n, ...] as one batch in the order of its rows."""
        assert self._order is not None
        return torch.cat(list(parts))[self._order]


class Part(nn.Module):
    """What one adapter does at one module: `part(base, x)` stands in for `base(x)`."""

    changes_input = False
    """True where `base` is asked about something else than x, so that its answer to x is of no use."""

    def merged(self, weight: Any, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Weight [out, in] and bias [out] (None: as it is) that do the same without the adapter."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Built:
    """An adapter that was made for a model: its parts by our names of the modules they stand at."""

    host: Host
    parts: dict[str, Part]
    sites: list[Site]
    """Where it stands in the checkpoint's terms; [] for what does not stand at linear layers."""
    shared: nn.Module | None = None
    """What belongs to no single module."""


class Adapted(Wrapper):
    """`base` with a `Part` for each adapter that has one here. [B, ..., in] -> [B, ..., out]."""

    def __init__(self, base: nn.Module, switch: Switch) -> None:
        super().__init__()
        self.base, self.switch = base, switch
        self.parts = nn.ModuleDict()
        self.kept: dict[str, Tensor] = {}
        """What the base's tensors were before something was merged into them."""
        for name in ("in_features", "out_features"):
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        switch = self.switch
        if switch.rows is not None:
            return self._mixed(x, rest)
        part = self._part(switch.active)
        return self.base(x, *rest) if part is None else part(self.base, x, *rest)

    def _part(self, name: str | None) -> nn.Module | None:
        if name is None or name == self.switch.merged or name not in self.parts:
            return None
        return self.parts[name]

    def _mixed(self, x: Tensor, rest: tuple[Any, ...]) -> Tensor:
        switch = self.switch
        assert switch.rows is not None
        found = [self._part(name) for name, _ in switch.groups]
        if not any(found):
            return self.base(x, *rest)
        if x.shape[0] != len(switch.rows):
            raise FailureError(
                f"a layer sees {x.shape[0]} rows where adapters were named for {len(switch.rows)}; "
                "use one adapter for the whole batch."
            )
        whole = None
        if rest or not all(part is None or part.changes_input for part in found):
            whole = self.base(x, *rest)
        out = []
        for part, (_, index) in zip(found, switch.groups, strict=True):
            rows = x[index]
            if whole is None or (part is not None and part.changes_input):
                out.append(self.base(rows) if part is None else part(self.base, rows))
            elif part is None:
                out.append(whole[index])
            else:
                out.append(part(_given(whole[index]), rows))
        return switch.in_order(out)

    def check_merge(self, name: str) -> None:
        """Raises UserError where the base has no weight to merge into."""
        weight = getattr(self.base, "weight", None)
        if not isinstance(weight, nn.Parameter) or not weight.is_floating_point():
            raise UserError(
                f"the base is quantised, and what the adapter '{name}' adds would be rounded away in it; "
                "merge into the base as it was before, then quantise that."
            )

    def merge(self, name: str) -> None:
        """Put the adapter's change into the base's own weight and bias, which are kept."""
        part = self.parts[name]
        assert isinstance(part, Part)
        old: dict[str, Any] = {label: getattr(self.base, label, None) for label in ("weight", "bias")}
        with torch.no_grad():
            fresh = part.merged(old["weight"], old["bias"])
            for label, new in zip(old, fresh, strict=True):
                if new is not None:
                    self.kept[label] = old[label].detach().clone()
                    old[label].copy_(new)

    def unmerge(self) -> None:
        """Put back, bit for bit, what was there."""
        with torch.no_grad():
            for label, old in self.kept.items():
                getattr(self.base, label).copy_(old)
        self.kept = {}


def _given(answer: Tensor) -> Base:
    """A base that has answered already."""
    return lambda x: answer.reshape(*x.shape[:-1], answer.shape[-1])
