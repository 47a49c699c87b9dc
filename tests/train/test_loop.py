"""The loop: it learns, and how a batch is cut never changes the gradient."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from modelworks.base.errors import FailureError, UserError
from modelworks.base.protocols import Batch
from modelworks.train.loop import backward, train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

from .toys import Next, build, silent

QUICK = {"track": [], "warmup_steps": 0, "dtype": "float32", "save_every": 1e9}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_tiny_model_learns(tmp_path: Path, optimizer: str) -> None:
    settings = TrainSettings(steps=150, optimizer=optimizer, learning_rate=0.01, evaluate_every=50, **QUICK)
    run = start(build(), Next(rows=16), settings, tmp_path, log=silent, plan=False)
    metrics = train(run)
    assert (
        metrics["validation_loss"] < 1.12
    )  # which of three strides a row has cannot be seen: ln 3 = 1.0986 is the least
    assert metrics["steps"] == 150 and metrics["skipped"] == 0
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "validation_loss" in line] == [50, 100, 150]
    assert lines[0]["loss"] > 1.5 and {
        "tokens",
        "learning_rate",
        "gradient_norm",
        "tokens_per_second",
        "seconds_left",
    } <= set(lines[0])


@given(parts=st.sampled_from([(16,), (8, 8), (4, 4, 4, 4), (1, 15), (3, 5, 8), (1,) * 16]), seed=st.integers(0, 5))
@examples(max_examples=25, deadline=None)
def test_accumulated_gradient_is_the_gradient_of_one_batch(parts: tuple[int, ...], seed: int) -> None:
    """Uneven masks and uneven parts, in float64: equal to 1e-12."""
    model = build(seed=seed).double()
    objective = Next(seed=seed)
    gradients = []
    for cut in ((16,), parts):
        run = start_in_memory(model, objective)
        edges = [sum(cut[:k]) for k in range(len(cut) + 1)]
        group = [objective.batch(range(a, b)) for a, b in itertools.pairwise(edges)]
        total = sum(batch.weight for batch in group)
        model.zero_grad()
        for batch in group:
            backward(run, batch, total)
        gradients.append([p.grad.clone() for p in model.parameters()])
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def start_in_memory(model: torch.nn.Module, objective: Next):
    """A run without a folder, for the parts of the loop that need none."""
    from modelworks.train.optim import Optimizer
    from modelworks.train.run import Run

    settings = TrainSettings(steps=1, **QUICK)
    return Run(model, objective, settings, Path("unused"), Optimizer(model, settings), log=silent)


@pytest.mark.parametrize("accumulate", [2, 4])
def test_a_run_in_micro_batches_ends_where_the_plain_one_does(tmp_path: Path, accumulate: int) -> None:
    ends = []
    for parts in (1, accumulate):
        model = build().double()
        settings = TrainSettings(steps=12, accumulate=parts, rows=16 // parts, optimizer="adamw", ema=0.9, **QUICK)
        train(start(model, Next(rows=16 // parts), settings, tmp_path / str(parts), log=silent, plan=False))
        ends.append(model.state_dict())
    for name in ends[0]:
        torch.testing.assert_close(ends[0][name], ends[1][name], rtol=1e-9, atol=1e-11)


def test_budget_in_tokens(tmp_path: Path) -> None:
    settings = TrainSettings(tokens=1000, **QUICK)
    run = start(build(), Next(), settings, tmp_path, log=silent, plan=False)
    train(run)
    assert 1000 <= run.tokens < 1000 + 8 * 8


class Bad(Next):
    """Poisons the loss, one gradient, or nothing, at the chosen steps."""

    def __init__(self, where: str, steps: set[int], value: float) -> None:
        super().__init__()
        self.where, self.steps, self.value = where, steps, value

    def loss(self, model, batch):
        sums = super().loss(model, batch)
        if self.at - 1 in self.steps:
            if self.where == "loss":
                sums["loss"] = sums["loss"] + self.value
            else:
                model.one.weight.register_hook(lambda g: g) if False else None
                sums["loss"] = sums["loss"] + (model.one.weight * 0).sum().mul(self.value)
        return sums


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_what_is_not_finite_never_reaches_the_weights(tmp_path: Path, where: str, value: float, optimizer: str) -> None:
    said: list[str] = []
    seen: list[dict[str, torch.Tensor]] = []
    model = build()
    settings = TrainSettings(steps=8, optimizer=optimizer, ema=0.5, **QUICK)
    run = start(model, Bad(where, {3, 5}, value), settings, tmp_path, log=said.append, plan=False)

    class Watch:
        def begin(self, run): ...
        def finish(self, run): ...
        def state_dict(self):
            return {}

        def load_state_dict(self, state): ...
        def __call__(self, run, logs):
            seen.append(copy.deepcopy(run.model.state_dict()))

    run.hooks.insert(0, Watch())
    metrics = train(run)
    assert metrics["skipped"] == 2
    assert all(torch.isfinite(t).all() for state in seen for t in state.values())
    for bad in (3, 5):
        assert all(torch.equal(seen[bad][name], seen[bad - 1][name]) for name in seen[0])
    assert not torch.equal(seen[4]["one.weight"], seen[3]["one.weight"])
    assert len(said) == 2 and said[0].startswith("step 4: ") and "batch " in said[0] and said[1].startswith("step 6: ")


def test_ten_bad_steps_in_a_row_end_the_run(tmp_path: Path) -> None:
    run = start(
        build(),
        Bad("loss", set(range(2, 99)), float("nan")),
        TrainSettings(steps=50, **QUICK),
        tmp_path,
        log=silent,
        plan=False,
    )
    with pytest.raises(FailureError, match=r"step 12: .*10 in a row"):
        train(run)
    assert all(p.isfinite().all() for p in run.model.parameters())


def test_a_huge_gradient_is_clipped_not_skipped(tmp_path: Path) -> None:
    model = build()
    before = [p.detach().clone() for p in model.parameters()]

    class Huge(Next):
        def loss(self, model, batch):
            return {"loss": super().loss(model, batch)["loss"] * 1e18}

    metrics = train(start(model, Huge(), TrainSettings(steps=3, **QUICK), tmp_path, log=silent, plan=False))
    assert metrics["skipped"] == 0
    assert all(p.isfinite().all() for p in model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_refusals(tmp_path: Path) -> None:
    whole = Next()
    whole.splittable = False
    with pytest.raises(UserError, match="cannot be split"):
        start(build(), whole, TrainSettings(steps=1, accumulate=2, **QUICK), tmp_path, log=silent)
    frozen = build().requires_grad_(False)
    with pytest.raises(UserError, match="no trainable"):
        start(frozen, Next(), TrainSettings(steps=1, **QUICK), tmp_path, log=silent)

    class Empty(Next):
        def batches(self, model):
            yield Batch({"tokens": torch.zeros(2, 8, dtype=torch.int64), "labels": torch.full((2, 8), -100)}, 0)

    with pytest.raises(UserError, match="nothing to predict"):
        train(start(build(), Empty(), TrainSettings(steps=1, **QUICK), tmp_path / "e", log=silent, plan=False))
    for wrong in ({}, {"steps": 1, "patience": 2}):
        with pytest.raises(ValueError):
            TrainSettings(**wrong)


def test_early_stopping_keeps_the_best_weights(tmp_path: Path) -> None:
    """The validation loss is scripted; the weights kept must be those of the best evaluation."""
    script = {5: 3.0, 10: 1.0, 15: 2.0, 20: 2.5, 25: 0.1}
    states: dict[int, dict[str, torch.Tensor]] = {}

    class Scripted(Next):
        def evaluate(self, model):
            states[self.at] = copy.deepcopy(model.state_dict())
            return {"loss": script[self.at]}

    settings = TrainSettings(steps=100, evaluate_every=5, patience=2, ema=0.8, **QUICK)
    run = start(build(), Scripted(), settings, tmp_path, log=silent, plan=False)
    metrics = train(run)
    assert run.step == 20 and "step 10" in run.stopped
    assert metrics["validation_loss"] == 1.0 and metrics["best_step"] == 10
    assert all(torch.equal(states[10][name], tensor) for name, tensor in run.model.state_dict().items())


def test_average_is_the_recursion(tmp_path: Path) -> None:
    from modelworks.train.average import Average

    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    average = Average(model, 0.9)
    expected = model.weight.detach().double().clone()
    for n in range(30):
        with torch.no_grad():
            model.weight.add_(torch.randn(2, 3))
        average.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * model.weight.detach().double()
    own = model.weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(model.weight.detach().double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(model.weight, own)
