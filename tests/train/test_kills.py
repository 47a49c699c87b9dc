"""A run that is killed at any moment, any number of times, ends like the one that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def fire(folder: Path, kills: int, signal: str = "KILL", seed: int = 0) -> dict[str, Any]:
    """What `killer.py` reports."""
    command = [sys.executable, str(Path(__file__).with_name("killer.py")), str(folder), str(kills), str(seed), signal]
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
def test_kill_nine(tmp_path: Path) -> None:
    report = fire(tmp_path, 6)
    assert report["kills"] == 6 and set(report["statuses"]) == {-9}
    assert report["identical"] == report["runs"] >= 1


@pytest.mark.small
@pytest.mark.timeout(900)
def test_kill_nine_a_hundred_times(tmp_path: Path) -> None:
    report = fire(tmp_path, 100, seed=1)
    print(report)
    assert report["kills"] == 100 and report["in_a_save"] >= 10
    assert report["identical"] == report["runs"]


@pytest.mark.timeout(300)
def test_sigterm_saves_and_says_so(tmp_path: Path) -> None:
    """Exit status 143 within ten seconds (0 when the run was over, -15 when it had not begun), and nothing lost."""
    report = fire(tmp_path, 4, "TERM")
    assert set(report["statuses"]) <= {143, 0, -15} and 143 in report["statuses"]
    assert report["slowest"] < 10
    assert report["identical"] == report["runs"]
