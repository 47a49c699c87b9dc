"""Artefacts: the folder that a stage leaves, keyed by the digest of its settings and inputs, and its facts."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..base import files, folders
from ..base.errors import DamagedError, UserError

FACTS = "artefact.json"


@dataclass(slots=True)
class Job:
    """What a stage gets to work with: its folder to fill, its inputs as paths, the seed, where to keep half work.

    `scratch` survives a kill and is the same for the same settings and inputs; `inputs` maps a setting's name to
    the paths that it names, in order.
    """

    name: str
    folder: Path
    scratch: Path
    inputs: dict[str, list[Path]]
    seed: int
    facts: dict[str, Any] = field(default_factory=dict)

    def input(self, key: str) -> Path:
        """The one path that setting `key` names."""
        return self.inputs[key][0]


def content_key(path: Path) -> str:
    """What decides whether an input changed: a sealed folder's manifest, a file's hash, a folder's listing.

    Raises UserError when there is nothing at `path`.
    """
    if (path / FACTS).is_file():
        return str(files.read_json(path / FACTS)["digest"])
    if (path / files.MANIFEST).is_file():
        return str(files.read_json(path / files.MANIFEST)["digest"])
    if path.is_file():
        return files.sha256(path)
    if path.is_dir():
        listed = sorted(p for p in path.rglob("*") if p.is_file())
        return files.digest([(str(p.relative_to(path)), p.stat().st_size, p.stat().st_mtime_ns) for p in listed])
    raise UserError(f"{path}: there is no such file or folder; check the path.")


def source_key(spec: str) -> str:
    """What decides whether a source changed: the listing behind `files:`, the Python version behind `pydoc:`."""
    scheme, _, rest = spec.partition(":")
    if scheme == "pydoc":
        import platform

        return f"{spec} {platform.python_version()}"
    path = Path(rest if scheme == "files" else spec)
    return f"{spec} {content_key(path)}" if path.exists() else spec


def versions() -> dict[str, str]:
    """Versions that the result depends on."""
    return {name: importlib.metadata.version(name) for name in ("modelworks", "torch", "tokenizers", "numpy")}


def ready(folder: Path) -> bool:
    """True when the artefact is complete and undamaged; says so and answers False when it is damaged."""
    from ..base.log import say

    if not files.is_complete(folder):
        return False
    try:
        files.verify(folder)
    except DamagedError as error:
        say(f"{error} Doing it again now.")
        return False
    return True


def facts(folder: Path) -> dict[str, Any]:
    """The facts of an artefact; {} for a folder that no stage made."""
    path = folder / FACTS
    return dict(files.read_json(path)) if path.is_file() else {}


def verbs() -> list[str]:
    """The verbs that a stage can do."""
    return folders.names("modelworks.recipes.stages")
