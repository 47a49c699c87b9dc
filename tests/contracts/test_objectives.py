"""The contract of objectives, over the folder: a new file in `objectives/` is tested here without being named.

An objective's module defines

    Config(Settings)                       its settings, all with defaults
    build(config, context) -> Objective    from `base.protocols.Context`
    example() -> (model, objective)        a fresh tiny model (seeded by the caller) and an objective on built-in
                                           data of at most ~100 tokens, with validation = training data, rows >= 2

and this suite asks of `example()` that sums are sums, that the model can memorise it in 200 quick steps, that its
state brings back the next batch, that evaluation changes nothing, and that it is finite and deterministic.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base import folders
from modelworks.base.config import Settings
from modelworks.base.protocols import Batch, Objective
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

NAMES = folders.names("modelworks.objectives")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only wait for each other on models this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=NAMES)
def module(request: pytest.FixtureRequest) -> Any:
    return folders.find("modelworks.objectives", request.param)


@pytest.fixture
def example(module: Any) -> tuple[torch.nn.Module, Objective]:
    torch.manual_seed(0)
    return module.example()


def take(objective: Objective, model: torch.nn.Module, count: int) -> list[Batch]:
    return list(islice(objective.batches(model), count))


def equal(one: Batch, other: Batch) -> bool:
    same = one.weight == other.weight and one.inputs.keys() == other.inputs.keys()
    return same and all(torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs)


def test_module_has_its_parts(module: Any) -> None:
    assert module.__doc__ and issubclass(module.Config, Settings)
    assert all(not field.is_required() and field.description for field in module.Config.model_fields.values())
    assert callable(module.build) and callable(module.example)


def test_objective_has_its_doors(example: Any) -> None:
    model, objective = example
    assert isinstance(objective, Objective) and isinstance(objective.splittable, bool)
    batch = take(objective, model, 1)[0]
    assert batch.weight > 0
    sums = objective.loss(model, batch)
    assert "loss" in sums and all(value.ndim == 0 and torch.isfinite(value) for value in sums.values())


def test_sums_are_sums(example: Any) -> None:
    """The loss and every metric of a batch are those of its rows added up, and so is the gradient."""
    model, objective = example
    if not objective.splittable:
        pytest.skip("this objective compares the rows of a batch")
    model = model.eval()
    batch = next(b for b in objective.batches(model) if len(next(iter(b.inputs.values()))) > 1)
    rows = len(next(iter(batch.inputs.values())))

    def measure(batches: list[Batch]) -> tuple[dict[str, float], list[torch.Tensor]]:
        model.zero_grad()
        totals: dict[str, float] = {}
        for part in batches:
            sums = objective.loss(model, part)
            sums["loss"].backward()
            for name, value in sums.items():
                totals[name] = totals.get(name, 0.0) + float(value.detach())
        return totals, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, gradient = measure([batch])
    parts = [Batch({n: t[k : k + 1] for n, t in batch.inputs.items()}, 0) for k in range(rows)]
    split, other = measure(parts)
    assert whole == pytest.approx(split, rel=1e-5, abs=1e-5)
    for a, b in zip(gradient, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_state_brings_back_the_next_batch(module: Any) -> None:
    """Through JSON, at every place of several epochs, in a fresh objective."""
    torch.manual_seed(0)
    model, objective = module.example()
    sequence = take(objective, model, 12)
    model, objective = module.example()
    iterator = objective.batches(model)
    for place in range(11):
        state = json.loads(json.dumps(objective.state_dict()))
        _, fresh = module.example()
        fresh.load_state_dict(state)
        assert equal(take(fresh, model, 1)[0], sequence[place]), place
        assert equal(next(iterator), sequence[place])


def test_deterministic(module: Any) -> None:
    results = []
    for _ in range(2):
        torch.manual_seed(0)
        model, objective = module.example()
        batches = take(objective, model, 3)
        results.append([float(objective.loss(model, batch)["loss"].detach()) for batch in batches])
    assert results[0] == results[1]


def test_evaluation_leaves_no_trace(example: Any) -> None:
    model, objective = example
    model.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = json.dumps(objective.state_dict())
    with torch.no_grad():
        first, second = objective.evaluate(model), objective.evaluate(model)
    assert first == second and "loss" in first and all(math.isfinite(value) for value in first.values())
    assert json.dumps(objective.state_dict()) == state
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memorises_its_example(dtype: str, example: Any, tmp_path: Path) -> None:
    model, objective = example
    with torch.no_grad():
        before = objective.evaluate(model.eval())["loss"]
    settings = TrainSettings(
        steps=200, learning_rate=0.01, warmup_steps=0, evaluate_every=200, dtype=dtype, track=[], save_every=1e9
    )
    metrics = train(start(model, objective, settings, tmp_path, log=lambda text: None, plan=False))
    assert metrics["skipped"] == 0
    assert metrics["validation_loss"] < 0.35 * before
