"""Adapter directories in PEFT's format, written and opened: adapter_config.json, adapter_model.safetensors.

Beside them our facts (modelworks.json: which base by name, configuration and a fingerprint of its weights) and a card.
What `peft` wrote has no such facts; then names and shapes decide whether the base is the right one.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ..base import files, folders
from ..base.config import Settings
from ..base.errors import UserError, nearest
from ..nn.attention import Attention
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from . import _attached, _peft
from ._attached import ADAPTERS, Adapters
from ._peft import CONFIG, WEIGHTS
from ._sites import CONTAINER, Host

FACTS = "modelworks.json"
SAMPLE = 64
"""Numbers of each weight that its fingerprint looks at."""


def is_adapter(folder: str | Path) -> bool:
    """Whether a folder holds an adapter rather than a model."""
    return (Path(folder) / CONFIG).is_file()


def save(
    model: nn.Module,
    name: str,
    folder: Path,
    *,
    base: str | Path | None = None,
    final: Path | None = None,
    facts: Mapping[str, Any] | None = None,
    card: str | None = None,
) -> None:
    """Write one adapter into `folder`, which may exist; only its own weights are stored.

    `base` is the path or hub name of the model that it was trained on; `final` is where the folder will stand, if
    elsewhere. Raises UserError for an unknown name or while it is merged, FailureError when the disk is full.
    """
    _attached.weights(model, name)
    adapters = model.get_submodule(CONTAINER)
    assert isinstance(adapters, Adapters)
    _attached._unmerged(adapters)
    attached, host = adapters.attached[name], adapters.host
    module, built = attached.module, attached.built
    with torch.no_grad():
        tensors = {key: t.detach().cpu().contiguous().clone() for key, t in module.tensors(built).items()}
    told = {
        "peft_type": module.PEFT_TYPE,
        "task_type": _task(host),
        "base_model_name_or_path": None if base is None else _named(base),
        "inference_mode": True,
        **module.to_peft(host, attached.settings, built),
    }
    about = {
        "name": None if base is None else str(base),
        "relative": _relative(base, final or folder),
        "family": host.family,
        "config": host.config.model_dump(),
        "fingerprint": fingerprint(host),
    }
    own = {"format": 1, "kind": attached.kind, "settings": attached.settings.model_dump(), "base": about}
    own["places"] = list(built.parts)
    with files.disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        files.fsync(folder / WEIGHTS)
    files.write_json(folder / CONFIG, told)
    files.write_json(folder / FACTS, {**own, **(facts or {})})
    count = sum(t.numel() for t in tensors.values())
    files.write_text(folder / "README.md", card or _card((final or folder).name, attached.kind, base, count))


def _relative(base: str | Path | None, folder: Path) -> str | None:
    """The way from an adapter's folder to its base, so that both can move together."""
    return os.path.relpath(Path(base).resolve(), folder.resolve()) if base is not None and Path(base).is_dir() else None


def _named(base: str | Path) -> str:
    return str(Path(base).resolve()) if Path(base).is_dir() else str(base)


def _task(host: Host) -> str | None:
    """PEFT's name of the task, which decides how its wrapper is called; none where a plain call is right."""
    if getattr(host.config, "head", None) != "language":
        return None
    if isinstance(host.model, EncoderDecoder):
        return "SEQ_2_SEQ_LM" if isinstance(host.model.encoder.stem, Tokens) else None
    causal = [module.mask.causal for _, module in host.modules() if isinstance(module, Attention)]
    return "CAUSAL_LM" if isinstance(host.model, Transformer) and all(causal) else None


def _card(name: str, kind: str, base: str | Path | None, count: int) -> str:
    known = f"base_model: {base}\n" if base is not None and not Path(base).exists() else ""
    return (
        f"---\nlibrary_name: peft\n{known}tags: [modelworks]\n---\n\n# {name}\n\nAn adapter of kind {kind} with "
        f"{count:,} numbers, made by modelworks. Its base and how it came about stand in `{FACTS}`.\n"
    )


def load(
    model: nn.Module, family: str, config: Settings, folder: str | Path, *, name: str = "default", learn: bool = False
) -> None:
    """Open an adapter's folder, ours or `peft`'s, onto its base, and use it; its weights rest unless `learn`.

    Raises UserError for an adapter of another base, a setting or kind that is not known here, tensors of another name
    or shape, pickles; DamagedError for a file that was cut short or changed.
    """
    folder = Path(folder)
    told, tensors = _peft.read(folder)
    module = _kind(told, folder)
    module.READ.check(told, folder / CONFIG)
    adapters = _attached._of(model)
    host = adapters.host if adapters is not None else Host(model, family, config)
    own = files.read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    _right_base(own.get("base") or {}, host, folder)
    shelf = _peft.Shelf(tensors, folder / WEIGHTS, host.prefix)
    sites = shelf.sites(host) if "targets" in module.Config.model_fields else []
    settings = module.from_peft(told, shelf, sites)
    if sites and isinstance(own.get("places"), list):
        settings["targets"] = own["places"]  # of a matrix that several of ours share, perhaps not all
    kind = module.__name__.rsplit(".", 1)[-1]
    if kind in ("lora", "dora") and "plus" in (own.get("settings") or {}):
        settings["plus"] = own["settings"]["plus"]
    _attached.attach(model, family, config, kind, settings, name=name)
    try:
        fresh = model.get_submodule(CONTAINER)
        assert isinstance(fresh, Adapters)
        with torch.no_grad():
            module.fill(fresh.attached[name].built, shelf)
        shelf.empty()
    except BaseException:
        _attached.detach(model, name)
        raise
    for weight in fresh.parameters_of(name):
        weight.requires_grad_(learn)


def _kind(told: Mapping[str, Any], folder: Path) -> Any:
    """The module that opens such an adapter. Raises UserError where there is none."""
    modules = [folders.find(ADAPTERS, name) for name in folders.names(ADAPTERS)]
    found = next((module for module in modules if module.is_mine(told)), None)
    if found is None:
        wanted = str(told.get("peft_type"))
        known = sorted({module.PEFT_TYPE for module in modules})
        raise UserError(
            f"{folder / CONFIG}: the adapter's kind '{wanted}' is not supported{nearest(wanted, known)}; "
            f"there are {', '.join(known)}."
        )
    return found


def base_of(folder: str | Path) -> str:
    """Path or hub name of the model that an adapter belongs to. Raises UserError where its folder does not say."""
    folder = Path(folder)
    told = files.read_json(folder / CONFIG)
    own = files.read_json(folder / FACTS) if (folder / FACTS).is_file() else {}
    about = own.get("base") or {}
    relative = folder / about["relative"] if about.get("relative") else None
    if relative is not None and relative.is_dir():
        return str(Path(os.path.normpath(relative)))
    named = (told.get("base_model_name_or_path") if isinstance(told, dict) else None) or about.get("name")
    if not named:
        raise UserError(f"{folder / CONFIG}: does not say which model the adapter belongs to; open it onto its base.")
    if os.path.isabs(named) and not Path(named).is_dir():
        raise UserError(f"{folder}: the adapter's base {named} is not there; put it back, or open the adapter onto it.")
    return str(named)


def _right_base(about: Mapping[str, Any], host: Host, folder: Path) -> None:
    """Raises UserError where our facts say that the adapter was trained on another base."""
    named = about.get("name") or "its name is not stored"
    if about.get("family", host.family) != host.family:
        raise UserError(
            f"{folder}: the adapter belongs to a base of the family {about['family']} ({named}), "
            f"and this is {host.family}."
        )
    theirs, ours = about.get("config") or {}, host.config.model_dump()
    differing = [key for key, value in theirs.items() if key != "dropout" and ours.get(key, value) != value]
    if differing:
        key = differing[0]
        raise UserError(
            f"{folder}: the adapter belongs to another base ({named}): its {key} is {theirs[key]}, "
            f"and here it is {ours[key]}."
        )
    print_, here = about.get("fingerprint") or {}, fingerprint(host)
    if print_ and here and print_.get("dtype") == here["dtype"] and print_ != here:
        raise UserError(
            f"{folder}: the adapter was trained on other weights of this shape ({named}); open it onto that base."
        )


def fingerprint(host: Host) -> dict[str, str] | None:
    """What tells two sets of weights apart: a digest over a few numbers of each. None for a quantised base."""
    digest, dtypes = hashlib.sha256(), set()
    found = {
        f"{path}.{label}": weight
        for path, module in host.modules()
        for label, weight in module.named_parameters(recurse=False)
    }
    if any(name not in found for name in host.names if name.endswith(".weight")):
        return None
    for name in sorted(set(found) & set(host.names)):
        flat = found[name].detach().flatten()
        dtypes.add(str(flat.dtype))
        some = flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].cpu().contiguous()
        digest.update(f"{name}{list(found[name].shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return {"dtype": ",".join(sorted(dtypes)), "digest": digest.hexdigest()}
