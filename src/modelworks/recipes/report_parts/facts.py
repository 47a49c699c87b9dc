"""What a run left on disk, read once: stages in the order of their making, and who made what from what."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelworks.base import files
from modelworks.base.errors import UserError

ARTEFACT = "artefact.json"


@dataclass(frozen=True)
class Stage:
    """One artefact folder. What a stage of its verb does not have is empty here."""

    name: str
    folder: Path
    artefact: dict[str, Any]
    ledger: list[dict[str, Any]] = field(default_factory=list)  # accounts of the steps, as data.corpus writes them
    shards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    steps: list[dict[str, Any]] = field(default_factory=list)  # lines of metrics.jsonl
    plan: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    items: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0  # lines of JSONL that could not be read

    @property
    def verb(self) -> str:
        return str(self.artefact.get("verb", "?"))

    @property
    def digest(self) -> str:
        """Eight hex digits that stand for settings and inputs; '' while they are not known."""
        named = re.search(r"-([0-9a-f]{8})\b", self.folder.resolve().name)
        return str(self.artefact.get("digest") or (named[1] if named else ""))[:8]

    @property
    def seconds(self) -> float:
        return float(self.artefact.get("seconds") or 0.0)

    @property
    def settings(self) -> dict[str, Any]:
        settings = self.artefact.get("settings")
        return settings if isinstance(settings, dict) else {}

    @property
    def metrics(self) -> dict[str, float]:
        """The stage's closing numbers."""
        metrics = self.artefact.get("metrics")
        found = metrics if isinstance(metrics, dict) else {}
        return {name: value for name, value in found.items() if isinstance(value, int | float)}

    @property
    def title(self) -> str:
        """The verb, and for training what was learned."""
        objective = self.settings.get("objective")
        if isinstance(objective, dict):
            objective = objective.get("name") or objective.get("do")
        return f"{self.verb} {objective}" if objective else self.verb

    def curve(self, name: str) -> list[tuple[float, float]]:
        """(step, value) of a series of metrics.jsonl, `validation_loss` and the like included."""
        out = []
        for line in self.steps:
            value = line.get(name)
            if value is None and name.startswith("validation_") and isinstance(line.get("validation"), dict):
                value = line["validation"].get(name.removeprefix("validation_"))
            if isinstance(value, int | float) and isinstance(line.get("step"), int | float):
                out.append((float(line["step"]), float(value)))
        return out


@dataclass(frozen=True)
class Run:
    """All complete stages of a run, makers before users."""

    name: str
    folder: Path
    stages: list[Stage]

    def find(self, name: str) -> Stage:
        """The stage of that name. Raises UserError when there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise UserError(
            f"{self.folder}: has no finished stage '{name}'; it has {', '.join(s.name for s in self.stages)}."
        )

    def sources(self, stage: Stage) -> list[Stage]:
        """The stages that `stage` was made from."""
        named = stage.artefact.get("input_folders")
        inputs = stage.artefact.get("inputs")
        words = [str(word) for value in (named or inputs or {}).values() for word in _list(value)]
        names = [] if named else list(inputs or {})
        found = []
        for other in self.stages:
            by_folder = any(word in (other.folder.resolve().name, other.name) for word in words)
            by_digest = len(other.digest) == 8 and any(word.startswith(other.digest) for word in words)
            if other is not stage and (by_folder or by_digest or other.name in names):
                found.append(other)
        return found

    def lineage(self, stage: Stage) -> list[Stage]:
        """Everything that `stage` came from, itself last."""
        wanted: list[Stage] = []

        def visit(one: Stage) -> None:
            for source in self.sources(one):
                visit(source)
            if one not in wanted:
                wanted.append(one)

        visit(stage)
        return wanted

    @property
    def machine(self) -> dict[str, Any]:
        """The machine of the newest stage that names one."""
        for stage in reversed(self.stages):
            if isinstance(stage.artefact.get("machine"), dict):
                return stage.artefact["machine"]  # type: ignore[no-any-return]
        return {}


def read(run_folder: Path) -> Run:
    """Read every complete stage of a run. Raises UserError when there is none, DamagedError for broken JSON.

    Where links named after the stages stand in the folder they say which artefact of a stage is current; else
    the newest of each stage is taken.
    """
    if not run_folder.is_dir():
        raise UserError(f"{run_folder}: there is no such run; `modelworks run` makes one.")
    found: dict[str, Path] = {}
    ordered = sorted(run_folder.iterdir(), key=lambda path: (path.is_symlink(), _made(path), path.name))
    for path in ordered:  # links last, so that they have the last word
        if path.name.startswith(".") or not (path / ARTEFACT).is_file():
            continue
        artefact = files.read_json(path / ARTEFACT)
        name = (
            path.name if path.is_symlink() else str(artefact.get("stage") or path.name.rpartition("-")[0] or path.name)
        )
        found[name] = path
    if not found:
        raise UserError(f"{run_folder}: holds no finished stage yet; run the recipe first.")
    stages = [stage(name, path) for name, path in found.items()]
    return Run(run_folder.resolve().name, run_folder, _ordered(Run("", run_folder, stages)))


def stage(name: str, folder: Path, artefact: dict[str, Any] | None = None) -> Stage:
    """Read one artefact folder; `artefact` stands in for artefact.json while that is not written yet."""
    ledger = _json(folder / "ledger.json")
    steps, bad_steps = _lines(_beside(folder, "metrics.jsonl"))
    items, bad_items = _lines(folder / "items.jsonl")
    return Stage(
        name=name,
        folder=folder,
        artefact=artefact if artefact is not None else _json(folder / ARTEFACT),
        ledger=[account for account in ledger.get("steps") or [] if isinstance(account, dict)],
        shards=ledger.get("shards") or {},
        steps=steps,
        plan=_json(_beside(folder, "plan.json")),
        scores=_json(folder / "scores.json"),
        items=items,
        unreadable=bad_steps + bad_items,
    )


def _ordered(run: Run) -> list[Stage]:
    """Makers before users, else by the time they were made."""
    out: list[Stage] = []
    for one in sorted(run.stages, key=lambda s: (_made(s.folder), s.name)):
        out += [s for s in run.lineage(one) if s not in out]
    return out


def _made(folder: Path) -> float:
    path = folder / ARTEFACT
    return path.stat().st_mtime if path.is_file() else 0.0


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _beside(folder: Path, name: str) -> Path:
    """A file of the artefact, where a training run kept it one folder further down as well."""
    return next((path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()), folder / name)


def _json(path: Path) -> dict[str, Any]:
    value = files.read_json(path) if path.is_file() else {}
    return value if isinstance(value, dict) else {}


def _lines(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a JSONL file and how many lines were none."""
    if not path.is_file():
        return [], 0
    out, bad = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except ValueError:
                value = None
            if isinstance(value, dict):
                out.append(value)
            else:
                bad += 1
    return out, bad
