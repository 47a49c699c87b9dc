"""Spikes of the loss: what counts as one, and that going back and skipping is exact however the run is disturbed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base.errors import FailureError
from modelworks.train import checkpoint
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import Guarding, TrainSettings
from modelworks.train.spikes import Spikes

from .test_checkpoint import Do, result
from .toys import Net, Next, silent

STEPS = 64


class Scarred(Net):
    """A net with one number more, which only a bad batch moves."""

    def __init__(self) -> None:
        torch.manual_seed(3)
        super().__init__(dropout=0.1)
        self.scar = torch.nn.Parameter(torch.zeros(()))


class Poisoned(Next):
    """The updates of the steps in `bad` leave a scar, and with a scar every loss is higher."""

    def __init__(self, bad: set[int], instead: float | None = None) -> None:
        super().__init__()
        self.bad, self.instead, self.names = bad, instead, 0

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        sums = super().loss(model, batch)
        step = (self.at + 1) // 2  # two micro-batches a step
        if self.instead is not None:  # the oracle: these steps are no numbers at all
            return sums | {
                "loss": sums["loss"] * (self.instead if step in self.bad and sums["loss"].requires_grad else 1.0)
            }
        scar = model.scar if step in self.bad else model.scar.detach()
        return sums | {"loss": sums["loss"] + batch.weight * (scar + 6.0 * float(scar.detach().abs() > 0))}

    def describe(self, batch: Any) -> list[str]:
        return [f"row {int(batch.inputs['tokens'][0, 0])}"]


def begin(folder: Path, objective: Next, do: Any = None, log: Any = silent, steps: int = STEPS, **changes: Any) -> Run:
    settings = TrainSettings(
        steps=steps, accumulate=2, ema=0.9, evaluate_every=9, save_every=1e9, log_every=4, dtype="float32", track=[],
        guard=Guarding(**{"spikes": 8.0} | changes),
    )  # fmt: skip
    run = start(Scarred(), objective, settings, folder, log=log, plan=False)
    if do:
        run.hooks.insert(-1, Do(do))
    return run


def weights(run: Run) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in run.model.state_dict().items()}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    torch.set_num_threads(1)
    run = begin(tmp_path_factory.mktemp("calm"), Poisoned({40}))
    return result(run, train(run))


def test_the_guilty_are_skipped_and_nothing_else_changed(tmp_path: Path, calm: tuple[Any, ...]) -> None:
    """The oracle takes another road: its steps 40 and 41 are NaN, which are skipped without going back."""
    said: list[str] = []
    run = begin(tmp_path / "a", Poisoned({40}), log=said.append)
    metrics = train(run)
    assert result(run, metrics) == calm
    oracle = begin(tmp_path / "b", Poisoned({40, 41}, instead=math.nan))
    assert train(oracle)["skipped"] == metrics["skipped"] == 2
    assert weights(oracle) == weights(run)
    assert "step 41: the loss is" in said[0] and "documents row" in said[0] and "batch " in said[0]
    assert said[1] == "back to step 0, and on from there without the steps 40 to 41"
    assert said[2].startswith("step 40: skipped") and said[3].startswith("step 41: skipped")
    lines = [json.loads(line) for line in (tmp_path / "a" / "steps.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "step" in line]
    assert [line["step"] for line in steps] == list(range(1, STEPS + 1))
    assert {line["step"]: line["skipped"] for line in steps if "skipped" in line} == {40: "guilty", 41: "guilty"}
    assert all(len(line["documents"]) == 2 for line in steps if "skipped" in line)


@pytest.mark.parametrize("saves", [(), (10, 20), (38,), (39,), (40,), (30, 39, 40), tuple(range(22, 52, 2))])
def test_where_checkpoints_stand_changes_nothing(tmp_path: Path, calm: tuple[Any, ...], saves: tuple[int, ...]) -> None:
    def save(run: Run) -> None:
        if run.step in saves:
            checkpoint.save(run)
        assert all(checkpoint.step_of(path) <= run.step for path in checkpoint.found(tmp_path))  # none of another past

    run = begin(tmp_path, Poisoned({40}), do=save)
    assert result(run, train(run)) == calm


@pytest.mark.parametrize("stops", [(39, 40), (38, 39, 45), (5, 40, 41, 42), (41, 60)])
def test_a_run_that_is_stopped_skips_the_same(tmp_path: Path, calm: tuple[Any, ...], stops: tuple[int, ...]) -> None:
    def stop(run: Run) -> None:
        if run.step in stops and run.step > resumed_at:
            os.kill(os.getpid(), signal.SIGTERM)

    resumed_at = 0
    for at in stops:
        run = begin(tmp_path, Poisoned({40}), do=stop)
        assert run.step == resumed_at
        with pytest.raises(SystemExit):
            train(run)
        assert run.step == at
        resumed_at = at
    run = begin(tmp_path, Poisoned({40}))
    assert result(run, train(run)) == calm


def test_a_spike_that_comes_again_takes_more_batches_along(tmp_path: Path) -> None:
    """The scar was made three steps before it shows: two batches are not enough, four are."""

    class Late(Poisoned):
        def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            sums = Next.loss(self, model, batch)
            step = (self.at + 1) // 2
            scar = model.scar if step in self.bad else model.scar.detach()
            shown = 6.0 * float(scar.detach().abs() > 0) * (step >= 43)
            return sums | {"loss": sums["loss"] + batch.weight * (scar + shown)}

    def save(run: Run) -> None:
        if 36 <= run.step <= 46:
            checkpoint.save(run)

    said: list[str] = []
    run = begin(tmp_path / "a", Late({40}), log=said.append)
    metrics = train(run)
    assert float(run.model.scar.detach()) == 0.0 and not run.stopped
    assert [line for line in said if line.startswith("back")] == [
        f"back to step 0, and on from there without the steps {steps}" for steps in ("42 to 43", "41 to 44", "38 to 45")
    ]
    assert metrics["skipped"] == 8
    often = begin(tmp_path / "b", Late({40}), do=save)  # with a checkpoint at every step one far enough back is kept
    assert result(often, train(often)) == result(run, metrics)


def test_what_is_a_spike() -> None:
    draw = random.Random(0)
    spikes = Spikes(8.0)
    for step in range(6000):  # falls from 8 to 1, noise of 4 %, one in a hundred three times as far off
        level = 1 + 7 * math.exp(-step / 800)
        loss = level * (1 + draw.gauss(0, 0.04) * (3 if draw.random() < 0.01 else 1))
        assert not spikes.sees(step + 1, loss)
    calm = spikes.bound()
    assert 1.1 < calm < 4 and spikes.sees(6001, calm * 1.01)
    assert len(spikes.losses) == 128  # what was a spike is no part of what is normal
    few = Spikes(8.0)
    assert not any(few.sees(step, 100.0**step) for step in range(1, 16))  # before there is a normal, nothing is odd
    flat = Spikes(8.0)
    assert not any(flat.sees(step, 2.0) for step in range(1, 100))
    assert not flat.sees(100, 2.0 + 7.9 * 0.04) and flat.sees(101, 2.0 + 8.1 * 0.04)  # 2 % of the first loss


def test_divergence_is_one_sentence(tmp_path: Path) -> None:
    """A learning rate a thousand times too high: the loss stays finite, and the run still ends."""
    settings = TrainSettings(
        steps=400, optimizer="adamw", learning_rate=30.0, weight_decay=0, clip=0, track=[], dtype="float32"
    )
    run = start(Net(), Next(), settings, tmp_path, log=silent, plan=False)
    with pytest.raises(FailureError, match=r"training diverges: lower learning_rate") as trouble:
        train(run)
    assert "\n" not in str(trouble.value) and run.step < 400


def test_spikes_without_end_end_the_run(tmp_path: Path) -> None:
    """Every update does harm from step 30 on: after four attempts it is said, unless the loss is below the first one."""
    with pytest.raises(FailureError, match=r"spikes again after going back 4 times; lower learning_rate"):
        train(begin(tmp_path / "a", Poisoned(set(range(30, 999)))))

    class Harder(Poisoned):
        def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            sums = Next.loss(self, model, batch)
            more = 1.1 if (self.at + 1) // 2 >= 130 else 0.0  # the data became harder, for good
            return sums | {"loss": sums["loss"] + batch.weight * more}

    said: list[str] = []
    assert train(begin(tmp_path / "b", Harder(set()), log=said.append, steps=150, spikes=4.0))["steps"] == 150
    assert "taken as the new level" in said[-1]


def test_off_costs_nothing(tmp_path: Path) -> None:
    run = begin(tmp_path, Poisoned({40}), spikes=0.0)
    train(run)
    assert not run.guard.spikes.losses and float(run.model.scar.detach()) != 0.0
