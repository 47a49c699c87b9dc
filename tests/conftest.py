"""Shared by all tests: two threads at most, a private cache, and where the real data is."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# a shared machine is no place for deadlines of milliseconds
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


def pytest_configure() -> None:
    os.environ.setdefault("MODELWORKS_QUIET", "1")
    os.environ.setdefault("OMP_NUM_THREADS", "2")


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Choices measured in a test never reach the user's own cache."""
    monkeypatch.setenv("MODELWORKS_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def real_data() -> Path:
    """The folder of real data sets named by MODELWORKS_DATA; the test is skipped where there is none."""
    folder = os.environ.get("MODELWORKS_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("needs the real data sets: set MODELWORKS_DATA to their folder")
    return Path(folder)
