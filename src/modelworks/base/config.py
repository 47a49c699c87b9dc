"""Strict settings: pydantic models, YAML with line numbers, dotted overrides, errors that name the nearest key."""

from __future__ import annotations

import re
import types
import typing
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from .errors import UserError, nearest

S = TypeVar("S", bound="Settings")
Lines = dict[tuple[str, ...], int]  # key path -> line in the file, counted from 1


class Settings(BaseModel):
    """Parent of every settings class: unknown keys are refused, values are fixed once built."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}


def parse_count(value: Any) -> Any:
    """'2M' -> 2000000, '200k' -> 200000, '1.5B' -> 1500000000; anything else is handed on to pydantic."""
    if isinstance(value, str):
        match = re.fullmatch(r"\s*([0-9][0-9_]*(?:\.[0-9]+)?)\s*([kKmMbBgGtT]?)\s*", value)
        if match:
            number = float(match[1].replace("_", "")) * _UNITS[match[2].lower()]
            return int(number) if number == int(number) else number
    return value


Count = Annotated[int, BeforeValidator(parse_count)]
"""A whole number that may be written 2M, 200k or 1_000."""


class _LineLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML would silently keep the last)."""


def _mapping(loader: _LineLoader, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)  # type: ignore[no-untyped-call]
        if key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key '{key}' stands here twice", key_node.start_mark
            )
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_LineLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def _lines(node: yaml.Node | None, path: tuple[str, ...], into: Lines) -> None:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            into[(*path, str(key.value))] = key.start_mark.line + 1
            _lines(value, (*path, str(key.value)), into)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            into[(*path, str(number))] = value.start_mark.line + 1
            _lines(value, (*path, str(number)), into)


def load_yaml(path: Path) -> tuple[dict[str, Any], Lines]:
    """Read a YAML mapping with the line of every key. Raises UserError with file:line when it is not one."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: there is no such file; check the path.") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the file as UTF-8.") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}).") from None
    lines: Lines = {}
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.load(text, Loader=_LineLoader)  # noqa: S506 - a subclass of SafeLoader
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML ({error.problem}).") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML ({error}).") from None
    if not isinstance(data, dict):
        raise UserError(f"{path}:1: expected a mapping of keys to values at the top.")
    _lines(node, (), lines)
    return data, lines


def override(data: dict[str, Any], assignments: list[str]) -> dict[str, Any]:
    """Apply `a.b.c=value` to a copy of `data`; the value is YAML, so `[x, y]`, `2M` and `true` work.

    Raises UserError where an assignment has no `=`, or walks through something that is not a mapping.
    """
    import copy

    out = copy.deepcopy(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key.strip():
            raise UserError(f"--set {assignment}: write it as key.subkey=value.")
        *parents, last = key.strip().split(".")
        place: Any = out
        for part in parents:
            if not isinstance(place, dict):
                raise UserError(f"--set {assignment}: '{part}' is inside a value, not a group of settings.")
            place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise UserError(f"--set {assignment}: '{last}' is inside a value, not a group of settings.")
        try:
            place[last] = yaml.safe_load(text)
        except yaml.YAMLError:
            place[last] = text
    return out


def build(cls: type[S], data: Any, where: str, lines: Lines | None = None, at: tuple[str, ...] = ()) -> S:
    """Build settings from plain data. Raises UserError: one sentence with file:line and the nearest known key.

    `where` names the origin (a file or 'the command line'); `at` is the key path of `data` inside it.
    """
    try:
        return cls.model_validate(data)
    except ValidationError as error:
        # a misspelt key also leaves its right name missing: tell of the misspelling
        first = min(error.errors(), key=lambda e: e["type"] != "extra_forbidden")
        path = tuple(str(part) for part in first["loc"])
        line = next(
            (lines[(*at, *path[:n])] for n in range(len(path), -1, -1) if lines and (*at, *path[:n]) in lines), None
        )
        place = f"{where}:{line}" if line else where
        key = ".".join((*at, *path)) or "the settings"
        if first["type"] == "extra_forbidden":
            message = f"'{key}' is not a setting{nearest(path[-1], _keys_at(cls, path[:-1]))}."
        elif first["type"] == "missing":
            message = f"'{key}' is needed and not there; add it."
        else:
            message = f"'{key}': {first['msg'].removeprefix('Value error, ')} (got {first['input']!r:.80})."
        more = len(error.errors()) - 1
        raise UserError(f"{place}: {message}" + (f" ({more} more after this one)" if more else "")) from None


def _keys_at(cls: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    """The field names of the settings class that stands at `path` inside `cls`, as far as it can be followed."""
    for part in path:
        field = cls.model_fields.get(part)
        if field is None:
            continue  # a list index or a dict key: the class stays the one found in its annotation
        cls = _settings_in(field.annotation) or cls
    return list(cls.model_fields)


def _settings_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for inner in get_args(annotation):
            found = _settings_in(inner)
            if found is not None:
                return found
    return None
