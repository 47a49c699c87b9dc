"""Folders as registries, seeds, remembered choices, devices."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modelworks.base import device, folders, seeds
from modelworks.base.errors import UserError


def test_a_folder_is_its_registry_and_a_typo_gets_the_nearest_name() -> None:
    names = folders.names("modelworks.objectives")
    assert {"causal_lm", "chat", "dpo", "adversarial"} <= set(names)
    assert all(folders.summary("modelworks.objectives", name) for name in names)
    with pytest.raises(UserError, match="did you mean 'causal_lm'"):
        folders.find("modelworks.objectives", "casual_lm")


def test_random_state_comes_back_exactly() -> None:
    import random

    def draw() -> list[float]:
        return [random.random(), float(np.random.rand()), float(torch.rand(1)), random.gauss(0, 1)]

    seeds.seed_everything(5)
    draw()
    kept = seeds.state()
    first = draw()
    seeds.restore(kept)
    assert draw() == first


def test_derived_seeds_depend_on_every_part() -> None:
    found = {seeds.derive(s, *parts) for s in (1, 2) for parts in ((), ("a",), ("a", "b"), ("ab",), ("a", 1))}
    assert len(found) == 10 and seeds.derive(1, "a") == seeds.derive(1, "a")


def test_a_measured_choice_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MODELWORKS_CACHE", str(tmp_path))
    answers = iter(["float32", "bfloat16"])
    assert device.remembered({"q": 1}, lambda: next(answers)) == "float32"
    assert device.remembered({"q": 1}, lambda: next(answers)) == "float32"
    assert device.remembered({"q": 2}, lambda: next(answers)) == "bfloat16"


def test_a_device_that_is_not_there() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="cuda"):
        device.choose_device("cuda")
    assert device.choose_device("auto").type in ("cpu", "mps")


def test_peak_memory_is_not_the_parents() -> None:
    """What starts a process may be larger than it; getrusage on Linux would tell of that."""
    ballast = b"x" * 600_000_000
    code = "from modelworks.base.device import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 20_000_000 < int(done.stdout) < len(ballast)
