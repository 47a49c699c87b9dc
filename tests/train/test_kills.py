"""A run that is killed, stopped, damaged or cut off at any moment ends like the one that was left alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from .faults import FAULTS

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # a kill leaves the page cache: the disk adds nothing


def fire(what: str, count: int, seed: int = 0, *more: str) -> dict[str, Any]:
    """What `killer.py` reports."""
    source = Path(__file__).parents[2] / "src"
    environment = os.environ | {"PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        command = [sys.executable, str(Path(__file__).with_name("killer.py")), what, folder, str(count), str(seed)]
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, timeout=1700)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("what", "count"), [("kill", 8), ("signal", 6), ("damage", 12), ("full", 4), ("power", 10)])
def test_nothing_is_lost(what: str, count: int) -> None:
    report = fire(what, count)
    assert report["wrong"] == [] and report["tries"] >= count
    assert report.get("slowest", 0) < 10


@pytest.mark.small
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("what", "count"), [("kill", 100), ("signal", 40), ("damage", 100), ("full", 40), ("power", 60)]
)
def test_nothing_is_lost_a_hundred_times(what: str, count: int) -> None:
    report = fire(what, count, seed=1)
    print(report)
    assert report["wrong"] == [] and report["tries"] >= count
    assert report.get("inside_a_save", count) >= count // 5
    assert report.get("slowest", 0) < 10


@pytest.mark.timeout(300)
def test_a_guard_that_is_gone_is_missed() -> None:
    report = fire("faults", 0, 0, "no hash check", "random state not restored")
    assert report["missed"] == [] and report["caught"] == 2


@pytest.mark.small
@pytest.mark.timeout(1800)
def test_every_guard_that_is_gone_is_missed() -> None:
    report = fire("faults", 0, 1)
    assert report["missed"] == [] and report["caught"] == len(FAULTS) >= 30
