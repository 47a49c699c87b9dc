"""The map is fresh, every room says what it is, imports go down only, no file is too long."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("module_map", ROOT / "tools" / "module_map.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_map_is_fresh(tool: ModuleType) -> None:
    assert tool.stale() == [], "run `make map`"


def test_every_package_says_what_lives_there(tool: ModuleType) -> None:
    silent = [str(file) for file in tool.PACKAGE.rglob("__init__.py") if not tool.first_line(file).endswith(".")]
    assert silent == []


def test_every_folder_has_its_place_on_the_floors(tool: ModuleType) -> None:
    placed = {name for layer in tool.floors() for name in layer}
    there = {path.parent.name for path in tool.PACKAGE.glob("*/__init__.py")}
    assert there <= placed, f"not on a floor: {sorted(there - placed)}"


def test_the_loop_may_know_base_alone(tool: ModuleType) -> None:
    """import-linter refuses names that do not exist yet, so a new room below `train` must be added by hand."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    forbidden = next(c["forbidden_modules"] for c in contracts if c["id"] == "blind-loop")
    plan = tool.floors()
    below = [
        name for layer in plan[next(n for n, layer in enumerate(plan) if "train" in layer) + 1 :] for name in layer
    ]
    there = {f"modelworks.{name}" for name in below if name != "base" and (tool.PACKAGE / name).is_dir()}
    assert there <= set(forbidden), "add them to the contract 'blind-loop' in pyproject.toml"


def test_no_file_is_too_long_without_a_reason(tool: ModuleType) -> None:
    assert tool.too_long() == []


def test_imports_only_go_down() -> None:
    program = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_a_stale_map_a_silent_package_and_a_long_file_are_seen(
    tool: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "src" / "modelworks"
    (package / "base").mkdir(parents=True)
    (package / "base" / "__init__.py").write_text('"""Ground."""\n')
    (tmp_path / "docs").mkdir()
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool, "PACKAGE", package)
    (tmp_path / "docs" / "map.md").write_text(tool.build())
    assert tool.stale() == [] and tool.too_long() == []
    (package / "base" / "long.py").write_text("x = 1\n" * 601)
    assert tool.stale() == ["docs/map.md"]
    assert tool.too_long() == ["src/modelworks/base/long.py: 601 lines"]
    (package / "base" / "long.py").write_text('"""Longer than 600 lines because it is a table."""\n' + "x = 1\n" * 601)
    assert tool.too_long() == []
