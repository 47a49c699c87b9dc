"""Every attack stays in its ball, raises the loss, and does the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from modelworks.base import folders
from modelworks.base.config import Settings

ATTACKS = folders.names("modelworks.attack")


@pytest.fixture(params=ATTACKS)
def trial(request):
    return folders.find("modelworks.attack", request.param).example()


def same(a, b) -> bool:
    return bool(torch.equal(a, b)) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0, 2.0])
def test_stays_in_its_ball(trial, share):
    for seed in range(20):
        attacked = trial.attack(share * trial.budget, seed)
        assert trial.distance(attacked) <= share * trial.budget * (1 + 1e-5)


def test_raises_the_loss_and_more_budget_raises_it_more(trial):
    clean = trial.loss(trial.clean)
    weak = sum(trial.loss(trial.attack(trial.budget, seed)) for seed in range(20)) / 20
    strong = sum(trial.loss(trial.attack(2 * trial.budget, seed)) for seed in range(20)) / 20
    assert clean < weak < strong


def test_nothing_happens_without_a_budget(trial):
    assert same(trial.attack(0.0, 3), trial.clean)
    assert trial.distance(trial.clean) == 0


def test_same_seed_same_result(trial):
    assert same(trial.attack(trial.budget, 7), trial.attack(trial.budget, 7))
    results = [trial.attack(trial.budget, seed) for seed in range(5)]
    assert any(not same(results[0], other) for other in results[1:])


@pytest.mark.parametrize("name", ATTACKS)
def test_has_settings_and_a_version(name):
    module = folders.find("modelworks.attack", name)
    assert issubclass(module.Config, Settings)
    assert all(field.description for field in module.Config.model_fields.values())
    assert module.VERSION >= 1
    assert folders.summary("modelworks.attack", name)
