"""The script that holds plans against real steps: planned before measured, both errors told, what counts as held."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

BENCH = Path(__file__).resolve().parents[3] / "bench"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.syspath_prepend(str(BENCH / "plan"))
    return importlib.import_module("measured")


@pytest.mark.parametrize(("seconds", "verdict"), [(1.2, "held"), (1.5, "NOT HELD")])
def test_it_plans_first_and_says_by_how_much_it_was_off(
    measured: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    seconds: float,
    verdict: str,
) -> None:
    order: list[str] = []

    def planned(spec: dict[str, Any]) -> dict[str, Any]:
        order.append("plan")
        return {"memory": {"total": 105e6}, "step_seconds": 1.0}

    def trained(spec: dict[str, Any], steps: int) -> dict[str, float]:
        order.append("train")
        return {"memory": 100e6, "step_seconds": seconds}

    monkeypatch.setattr(measured, "planned", planned)
    monkeypatch.setattr(measured, "measured", trained)
    monkeypatch.setattr(sys, "argv", ["measured.py", "--only", "gpt2-nano"])
    monkeypatch.setenv("MODELWORKS_CACHE", "elsewhere")
    measured.main()
    told = capsys.readouterr().out
    assert order == ["plan", "train"] * 2 and "+5%" in told and f"; {verdict}" in told
    assert len({spec["preset"] for spec in measured.CASES}) >= 6
