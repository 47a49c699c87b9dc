"""What a recipe is: a name, a seed, the user's data and named stages, read from YAML with strict checks.

A stage is `{do: VERB, ...}`; its other keys are the settings of that verb (`recipes/stages/VERB.py`, class
`Config`). A setting listed in the verb's `REFERENCES` names an earlier stage, a path or a model. The text
`{data}` in any setting stands for the recipe's `data`, which the user gives: `--set data=PATH`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field

from ..base import config, folders
from ..base.config import Lines, Settings
from ..base.errors import UserError, nearest

STAGES = "modelworks.recipes.stages"


class Serve(Settings):
    """What the finished recipe offers to talk to."""

    model: str
    """Stage whose artefact `modelworks serve` and `modelworks chat` are told to open."""


class Head(Settings):
    """The keys of a recipe beside its stages."""

    name: str
    """Folder under runs/ for the artefacts."""
    description: str = ""
    """One line for `modelworks ls recipes`."""
    seed: int = 1
    """Seeds everything random in every stage."""
    effort: float = Field(1.0, gt=0)
    """Multiplies the budget of every training stage: 0.1 for a first try, 3 for a better model."""
    data: str | list[str] | None = None
    """The user's own file or folder, where the recipe asks for it as {data}."""
    stages: dict[str, dict[str, Any]]
    """Named stages in order."""
    serve: Serve | None = None
    """What to talk to at the end."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A checked stage: its name, verb, settings, and which earlier stages or paths its settings name."""

    name: str
    verb: str
    module: ModuleType
    settings: Settings
    references: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Recipe:
    """A recipe whose every setting was checked; stages keep the order of the file."""

    head: Head
    stages: dict[str, Stage]


def library() -> dict[str, Path]:
    """The recipes that are shipped, by name."""
    folder = Path(str(resources.files("modelworks.recipes"))) / "library"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def find(name: str) -> Path:
    """The file of a recipe given by name or path. Raises UserError with the nearest name."""
    if name in library():
        return library()[name]
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        return path
    raise UserError(f"'{name}' is not a recipe{nearest(name, list(library()))}; give a shipped name or a YAML file.")


def load(name: str, assignments: list[str] | None = None) -> Recipe:
    """Read, override and check a recipe. Raises UserError with file:line for whatever does not fit."""
    path = find(name)
    data, lines = config.load_yaml(path)
    return check(config.override(data, assignments or []), str(path), lines)


def check(data: dict[str, Any], where: str, lines: Lines | None = None) -> Recipe:
    """Check plain data as a recipe: every stage's verb, keys and references."""
    head = config.build(Head, data, where, lines)
    stages: dict[str, Stage] = {}
    for name, raw in head.stages.items():
        at = ("stages", name)
        place = f"{where}:{lines[at]}" if lines and at in lines else where
        if not name.replace("_", "").replace("-", "").isalnum():
            raise UserError(f"{place}: the stage name '{name}' may hold letters, digits, - and _ only.")
        filled = _fill({k: v for k, v in raw.items() if k != "do"}, head.data, place)
        if raw.get("do") == "train":
            filled = _with_effort(filled, head.effort)
        stages[name] = stage(name, str(raw.get("do", "")), filled, where, lines)
        for named in [word for words in stages[name].references.values() for word in words]:
            if named not in list(stages)[:-1] and not _outside(named):
                raise UserError(
                    f"{place}: '{named}' is neither an earlier stage{nearest(named, list(stages)[:-1])} nor a path."
                )
    if head.serve and head.serve.model not in stages:
        raise UserError(f"{where}: serve.model names no stage{nearest(head.serve.model, list(stages))}.")
    return Recipe(head, stages)


def stage(name: str, verb: str, settings: dict[str, Any], where: str, lines: Lines | None = None) -> Stage:
    """Check one stage. The same for a recipe's stage and for a command typed by hand."""
    place = f"{where}:{lines[('stages', name)]}" if lines and ("stages", name) in lines else where
    try:
        module = folders.find(STAGES, verb)
    except UserError:
        known = nearest(verb, folders.names(STAGES))
        raise UserError(f"{place}: stage '{name}': do: '{verb}' is not a verb{known}.") from None
    if hasattr(module, "configure"):
        built = module.configure(settings, where, lines, ("stages", name))
    else:
        built = config.build(module.Config, settings, where, lines, ("stages", name))
    return Stage(name, verb, module, built, _references(module, built))


def _with_effort(settings: dict[str, Any], effort: float) -> dict[str, Any]:
    """Settings of a train stage with its budget, and the steps between evaluations, times `effort`."""
    out = dict(settings)
    for key, value in settings.items():
        if key == "budget" and isinstance(value, dict):
            out[key] = _with_effort(value, effort)
        elif key in ("steps", "tokens", "evaluate_every") and effort != 1:
            number = config.parse_count(value)
            out[key] = max(1, round(number * effort)) if isinstance(number, int | float) and number else value
    return out


def _references(module: ModuleType, settings: Settings) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for key in module.REFERENCES:
        value = getattr(settings, key)
        words = value if isinstance(value, list) else [value]
        named = [word for word in words if isinstance(word, str) and word]
        if named:
            found[key] = named
    return found


def _outside(named: str) -> bool:
    """True for what need not be a stage: an existing path, or a hub name such as Qwen/Qwen3-0.6B."""
    return Path(named).exists() or named.count("/") == 1


def _fill(value: Any, data: str | list[str] | None, place: str) -> Any:
    """Put the recipe's `data` where `{data}` stands."""
    if isinstance(value, dict):
        return {k: _fill(v, data, place) for k, v in value.items()}
    if isinstance(value, list):
        filled = [_fill(v, data, place) for v in value]
        return [x for v in filled for x in (v if isinstance(v, list) else [v])]
    if isinstance(value, str) and "{data}" in value:
        if data is None:
            raise UserError(f"{place}: this recipe works on your data: add --set data=PATH (a file or a folder).")
        several = data if isinstance(data, list) else [data]
        texts = [value.replace("{data}", one) for one in several]
        return texts[0] if len(texts) == 1 else texts
    return value


def json_schema(verb: str | None = None) -> dict[str, Any]:
    """The JSON schema of a recipe, for editors; or of one verb's settings. Raises UserError for an unknown verb."""
    if verb is not None:
        return _verb_schema(verb)
    shape = Head.model_json_schema()
    verbs = {name: _verb_schema(name) for name in folders.names(STAGES)}
    stages = []
    for name, settings in verbs.items():
        properties = {"do": {"const": name}, **settings.get("properties", {})}
        stages.append({**settings, "properties": properties, "required": ["do", *settings.get("required", [])]})
    definitions = {key: value for one in stages for key, value in one.pop("$defs", {}).items()}
    shape["$defs"] = {**shape.get("$defs", {}), **definitions}
    shape["properties"]["stages"] = {"type": "object", "additionalProperties": {"anyOf": stages}}
    return shape


def _verb_schema(verb: str) -> dict[str, Any]:
    module = folders.find(STAGES, verb)
    return module.json_schema() if hasattr(module, "json_schema") else module.Config.model_json_schema(by_alias=True)
