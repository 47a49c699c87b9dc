"""Sets: the data sets at hand, those in the folder that MODELWORKS_DATA names and the embedded `pydoc:stdlib`."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from modelworks.base import files
from modelworks.base.errors import UserError, nearest

EMBEDDED = "pydoc:stdlib"
_FACT = re.compile(r"\b(Task|Language|Rows|Licence): *(.+?)(?:\.(?= [A-Z]|\s*$)|$)", re.M)


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set: `source` is what `modelworks collect` takes; `bytes` as it lies on disk (0: made when asked for)."""

    name: str
    task: str
    language: str
    rows: str
    licence: str
    bytes: int
    source: str


def root() -> Path | None:
    """The folder of data sets, None where MODELWORKS_DATA names none. Raises UserError when it is not there."""
    named = os.environ.get("MODELWORKS_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"MODELWORKS_DATA: there is no folder {folder}; set it to the folder of data sets, or unset it."
        )
    return folder


def sets() -> list[DataSet]:
    """All sets by name, the embedded one first. Each folder with a README.md counts; its facts are read from there."""
    embedded = DataSet(EMBEDDED, "language modelling, questions", "en", "", "PSF-2.0", 0, EMBEDDED)
    folder = root()
    found = sorted(folder.glob("*/README.md")) if folder else []
    return [embedded, *(_described(path) for path in found)]


def _described(readme: Path) -> DataSet:
    facts = dict.fromkeys(("Task", "Language", "Rows", "Licence"), "")
    for match in _FACT.finditer(readme.read_text(encoding="utf-8", errors="replace")):
        facts[match[1]] = facts[match[1]] or match[2].strip()
    place = readme.parent
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    return DataSet(
        place.name, facts["Task"], facts["Language"], facts["Rows"], facts["Licence"], size, f"files:{place}"
    )  # fmt: skip


def find(name: str) -> DataSet:
    """The set with this name. Raises UserError with the nearest name."""
    known = {data.name: data for data in sets()}
    if name not in known:
        hint = "" if len(known) > 1 else " (MODELWORKS_DATA names no folder of data sets)"
        raise UserError(f"'{name}' is not among the data sets{nearest(name, list(known))}{hint}.")
    return known[name]


def show(name: str) -> str:
    """What a set is: its README."""
    data = find(name)
    if data.name == EMBEDDED:
        return (
            f"# {EMBEDDED}\n\nDocstrings and signatures of this Python's standard library, read from its source, and "
            "the language reference (pydoc_data.topics). Licence: PSF-2.0."
        )
    return (Path(data.source.removeprefix("files:")) / "README.md").read_text(encoding="utf-8", errors="replace")


def get(name: str, out: Path) -> Path:
    """Copy a set's files to `out`, whole or not at all; returns `out`. The embedded set needs no copy: UserError."""
    data = find(name)
    if data.name == EMBEDDED:
        raise UserError(f"{EMBEDDED} needs no copy; use it as it is: modelworks collect {EMBEDDED}.")
    with files.new_directory(out) as work:
        shutil.copytree(data.source.removeprefix("files:"), work, dirs_exist_ok=True)
    return out
