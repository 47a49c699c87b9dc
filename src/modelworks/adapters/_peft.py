"""PEFT's directory: what its settings and tensor names mean, read strictly, and how ours are written in its words."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..base import files
from ..base.errors import DamagedError, UserError, nearest
from ._sites import Host, Site

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."
NEUTRAL = (
    "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fields:
    """What a kind does with each of PEFT's settings: reads it, demands one of few values, or need not care."""

    read: tuple[str, ...] = ()
    only: Mapping[str, tuple[Any, ...]] = ()  # type: ignore[assignment]
    neutral: tuple[str, ...] = ()

    def check(self, told: Mapping[str, Any], where: Path) -> None:
        """Raises UserError for a setting that may change the maths in a way that is not known here."""
        only = dict(self.only)
        for key, value in told.items():
            if key in self.read or key in self.neutral or key in NEUTRAL:
                continue
            if key in only:
                if value not in only[key]:
                    raise UserError(
                        f"{where}: '{key}' is {value!r}, and only {only[key][0]!r} is done here; "
                        "this adapter cannot be opened exactly."
                    )
            elif value is not None and value is not False and value not in ({}, [], ""):
                raise UserError(
                    f"{where}: '{key}' ({value!r:.60}) is not known here and may change what the adapter computes; "
                    "it cannot be opened exactly."
                )


class Shelf:
    """The tensors of an adapter's file by their names without PEFT's prefix; each is taken once."""

    def __init__(self, tensors: dict[str, Tensor], where: Path, lacking: str = "") -> None:
        self.where, self.left = where, {}
        for name, tensor in tensors.items():
            self.left[name.removeprefix(PREFIX)] = tensor
        self.lacking = lacking

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """The tensor of that name. Raises UserError where it is missing or of another shape."""
        known = next((n for n in (name, name.removeprefix(self.lacking)) if n in self.left), None)
        if known is None:
            raise UserError(f"{self.where}: the tensor '{name}' is missing{nearest(name, list(self.left))}.")
        tensor = self.left.pop(known)
        if tuple(tensor.shape) != tuple(shape):
            raise UserError(
                f"{self.where}: the tensor '{name}' has shape {list(tensor.shape)} where this base and "
                f"{CONFIG} ask for {list(shape)}; the adapter belongs to another base, or has another rank."
            )
        return tensor

    def peek(self, name: str) -> Tensor | None:
        """The tensor of that name, if it is there, left where it is."""
        return self.left.get(name, self.left.get(name.removeprefix(self.lacking)))

    def empty(self) -> None:
        """Raises UserError naming a tensor that nobody took."""
        if self.left:
            raise UserError(
                f"{self.where}: the tensor '{min(self.left)}' belongs to nothing that this base or {CONFIG} has; "
                "the adapter belongs to another base."
            )

    def sites(self, host: Host) -> list[Site]:
        """The layers that the file has tensors for. Raises UserError where it has none of this base."""
        every = host.sites()
        stored = {name: site for site in every for name in (site.stored, site.stored.removeprefix(host.prefix))}
        found: list[Site] = []
        for name in self.left:
            parts = name.split(".")
            ends = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
            site = next((stored[end] for end in ends if end in stored), None)
            if site is not None and site not in found:
                found.append(site)
        if not found:
            first = min(self.left, default="")
            raise UserError(
                f"{self.where}: none of its tensors ('{first}' ...) belongs to a layer of this base; "
                "the adapter belongs to another base."
            )
        return found


@contextlib.contextmanager
def damaged(path: Path) -> Iterator[None]:
    """Errors of the safetensors reader as DamagedError."""
    try:
        yield
    except (SafetensorError, OSError) as error:
        raise DamagedError(
            f"{path}: is damaged ({error}); it was cut short or changed, fetch or make it again."
        ) from None


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Settings and tensors of an adapter's folder. Raises UserError (none, or a pickle only), DamagedError."""
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: there is no {CONFIG} in it; is it an adapter's folder?")
    if files.is_complete(folder):
        for name in (CONFIG, WEIGHTS):
            files.verify(folder, only=name)
    told = files.read_json(folder / CONFIG)
    if not isinstance(told, dict):
        raise DamagedError(f"{folder / CONFIG}: is not a mapping of settings; fetch or make the adapter again.")
    path = folder / WEIGHTS
    if not path.is_file():
        if (folder / PICKLE).is_file():
            raise UserError(
                f"{folder / PICKLE}: pickle files can run code when opened and are refused; "
                f"convert the adapter to {WEIGHTS} where you trust it."
            )
        raise UserError(f"{folder}: there is no {WEIGHTS} in it; the adapter is not complete.")
    with damaged(path), safe_open(path, framework="pt") as file:
        return told, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict


def plain(number: float) -> float:
    """16.0 -> 16: PEFT writes whole numbers."""
    return int(number) if number == int(number) else number


def transposed(host: Host, sites: Sequence[Site]) -> bool:
    """PEFT's fan_in_fan_out: the checkpoint keeps these matrices as [in, out] (GPT-2)."""
    return any(host.names[f"{place.ours}.weight"].transpose for site in sites for place in site.places)


def target_modules(host: Host, sites: Sequence[Site]) -> list[str]:
    """The last parts of the names where they mean exactly these layers, else the whole names."""
    whole = {site.stored for site in sites}
    ends = {name.rsplit(".", 1)[-1] for name in whole}
    meant = {name for name in host.stored_modules() if name.rsplit(".", 1)[-1] in ends}
    return sorted(ends if meant == whole else whole)
