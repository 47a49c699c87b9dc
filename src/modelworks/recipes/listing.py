"""What `modelworks ls` and `modelworks data` print: what the folders hold, and the data sets at hand."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..base import folders
from ..base.errors import UserError, nearest

PACKAGES = {
    "objectives": "modelworks.objectives",
    "families": "modelworks.models",
    "suites": "modelworks.evaluate.suites",
    "attacks": "modelworks.attack",
    "adapters": "modelworks.adapters",
    "sources": "modelworks.data.sources",
    "steps": "modelworks.data.steps",
    "verbs": "modelworks.recipes.stages",
    "exports": "modelworks.recipes.exports",
    "jobs": "modelworks.recipes.jobs",
}
KINDS = [*PACKAGES, "presets", "recipes"]


def listing(kind: str | None) -> list[dict[str, Any]]:
    """One row for each thing of a kind, `{"name", "about", ...}`; without a kind, the kinds themselves.

    Raises UserError for an unknown kind.
    """
    if kind is None:
        return [{"kind": k, "holds": ", ".join(row["name"] for row in listing(k))} for k in KINDS]
    if kind in PACKAGES:
        package = PACKAGES[kind]
        return [{"name": name, "about": folders.summary(package, name)} for name in folders.names(package)]
    if kind == "presets":
        return _presets()
    if kind == "recipes":
        from .schema import library

        return [{"name": name, "about": _description(path)} for name, path in library().items()]
    raise UserError(f"'{kind}' is not a kind of thing{nearest(kind, KINDS)}.")


def _presets() -> list[dict[str, Any]]:
    from ..hub import presets
    from ..nn.arithmetic import parameters

    rows = []
    for name, family in presets.presets().items():
        module = presets.family_module(family)
        config = module.PRESETS[name]
        shape = module.shape(config)
        count = parameters(shape)
        about = f"{shape.n_layers} layers, {shape.d_model} wide, {shape.vocab_size:,} words"
        rows.append({"name": name, "family": family, "parameters": count, "about": about})
    return rows


def _description(path: Path) -> str:
    from ..base.config import load_yaml

    return str(load_yaml(path)[0].get("description", ""))


def data(action: str, name: str | None, out: str | None) -> Any:
    """`list` the data sets, `show` one's description, `get` a copy of one. Raises UserError."""
    from ..data import sets

    if action == "list":
        return [asdict(one) for one in sets.sets()]
    if name is None:
        raise UserError(f"data {action}: name a set; `modelworks data list` shows them.")
    if action == "show":
        return [{"about": sets.show(name)}]
    return [{"copied": str(sets.get(name, Path(out or name)))}]
