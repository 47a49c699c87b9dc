"""Models here are tiny: a second thread only makes the first one wait (thirtyfold on a busy machine)."""

import pytest


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELWORKS_THREADS", "1")
