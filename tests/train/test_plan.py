"""The plan leaves no trace, is taken again on a restart, and its choice is remembered; trackers; settings."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base import device
from modelworks.base.errors import UserError
from modelworks.train import blocks, trackers, tune
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import TrainSettings

from .toys import Next, build, silent

SETTINGS = TrainSettings(steps=6, accumulate=2, save_every=1e9, dtype="float32", track=[])


def test_plan_leaves_no_trace(tmp_path: Path) -> None:
    """Weights, optimiser, the data's order and dropout's randomness are those of a run without a plan."""
    ends = []
    for planned in (True, False):
        model = build(dropout=0.3)
        run = start(model, Next(), SETTINGS, tmp_path / str(planned), log=silent, plan=planned)
        assert run.positions == 0 and run.step == 0
        train(run)
        ends.append(model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_plan_says_what_it_measured(tmp_path: Path) -> None:
    said: list[str] = []

    class Expecting(Next):
        def expect(self, model: torch.nn.Module, tokens: int) -> tuple[float, float]:
            return 0.5, 1.5

    run = start(build(), Expecting(), SETTINGS, tmp_path, log=said.append)
    facts = json.loads((tmp_path / "plan.json").read_text())
    assert facts == run.plan
    assert facts["steps"] == 6 and facts["parameters"] == sum(p.numel() for p in run.model.parameters())
    assert facts["loss_before"] == pytest.approx(2.5, abs=0.5)  # chance: ln 11 = 2.4
    assert facts["flops_per_position"] == 6 * sum(
        p.numel() for n, p in run.model.named_parameters() if p.ndim == 2 and n != "stem.weight"
    )
    assert len(said) == 1 and "expected between 0.50 and 1.50" in said[0] and "6 steps" in said[0]
    run.closing.close()
    again = start(build(), Expecting(), SETTINGS, tmp_path, log=said.append)  # killed before the first checkpoint
    assert again.plan == facts and len(said) == 1
    again.closing.close()


@pytest.mark.parametrize(("seconds", "answer"), [((1.0, 0.95), "float32"), ((1.0, 0.5), "bfloat16")])
def test_auto_takes_the_faster_and_remembers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: Any, answer: str
) -> None:
    monkeypatch.setenv("MODELWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda kind="cpu": True)
    times = dict(zip((torch.float32, torch.bfloat16), seconds))
    monkeypatch.setattr(tune, "_time", lambda run, group: times[run.dtype])
    settings = SETTINGS.model_copy(update={"dtype": "auto", "tune": "off"})
    run = start(build(), Next(), settings, tmp_path / "a", log=silent)
    assert run.plan["dtype"] == answer and str(run.dtype) == f"torch.{answer}"
    run.closing.close()
    times.update({torch.float32: seconds[1], torch.bfloat16: seconds[0]})  # measured anew it would be the other
    run = start(build(), Next(), settings, tmp_path / "b", log=silent)
    assert run.plan["dtype"] == answer
    run.closing.close()


def test_bfloat16_trains_with_float32_weights(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"dtype": "bfloat16", "steps": 40})
    run = start(build(), Next(rows=16), settings, tmp_path, log=silent, plan=False)
    train(run)
    assert all(p.dtype == torch.float32 for p in run.model.parameters())
    assert run.hooks and json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["loss"] < 2.2


def test_time_left_is_true(tmp_path: Path) -> None:
    """With steps of 20 ms, evaluations of 60 ms and saves in between, halfway's estimate is within a half (the machine may be busy)."""

    class Slow(Next):
        def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
            time.sleep(0.02)
            return Next.loss(self, model, batch)

        def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
            time.sleep(0.06)
            return {"loss": 1.0}

    settings = TrainSettings(steps=60, evaluate_every=10, log_every=5, dtype="float32", track=[], save_every=0.2)
    run = start(build(), Slow(), settings, tmp_path, log=silent, plan=False)
    train(run)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    logged = {line["step"]: line for line in lines if "seconds_left" in line}
    for step in (20, 30, 40):
        truth = logged[60]["seconds"] - logged[step]["seconds"]
        assert logged[step]["seconds_left"] == pytest.approx(truth, rel=0.5, abs=0.3)
    assert logged[60]["seconds_left"] == 0


def test_tensorboard_gets_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = TrainSettings(steps=20, evaluate_every=10, log_every=5, dtype="float32")
    train(start(build(), Next(), settings, tmp_path, log=silent, plan=False))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("loss")] == [5, 10, 15, 20]
    assert [event.step for event in events.Scalars("validation_loss")] == [10, 20]


def test_trackers_that_are_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    said: list[str] = []
    train(start(build(), Next(), TrainSettings(steps=2, dtype="float32"), tmp_path, log=said.append, plan=False))
    assert len(said) == 1 and "TensorBoard is not installed" in said[0]
    settings = TrainSettings(steps=2, dtype="float32", track=["wandb"])
    with pytest.raises(UserError, match="wandb is not installed"):
        start(build(), Next(), settings, tmp_path / "w", log=silent, plan=False)


def test_settings_are_few_and_explained() -> None:
    fields = TrainSettings.model_fields
    assert len(fields) <= 24 and all(field.description for field in fields.values())


class Stacked(torch.nn.Module):
    """Two like blocks between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Embedding(11, 16)
        self.blocks = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Dropout(0.3)) for _ in range(2)
        )
        self.head = torch.nn.Linear(16, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.stem(tokens)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def gradients(model: torch.nn.Module) -> list[torch.Tensor]:
    torch.manual_seed(5)
    model.zero_grad()
    model(torch.arange(10)[None]).square().sum().backward()
    return [p.grad.clone() for p in model.parameters()]


def test_recomputed_blocks_change_nothing() -> None:
    torch.manual_seed(0)
    model = Stacked()
    assert list(blocks.blocks(model)) == list(model.blocks)
    before = gradients(model)
    blocks.recomputed(model)
    assert all(torch.equal(a, b) for a, b in zip(before, gradients(model), strict=True))


def test_the_fastest_way_is_taken_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each change is tried from the best so far; a restart works in the way that was chosen."""
    monkeypatch.setenv("MODELWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("MODELWORKS_THREADS", raising=False)
    monkeypatch.setattr(device, "has_fast_bfloat16", lambda kind="cpu": True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[-1])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.append(count))
    threads, tried = [2], []

    def seconds(run: Any, group: Any) -> float:
        compiled = any(block._compiled_call_impl is not None for block in blocks.blocks(run.model))
        tried.append((str(run.dtype), threads[-1], compiled, run.guard.parts))
        return {"torch.float32": 2.0, "torch.bfloat16": 1.0}[run.dtype.__str__()] * (0.5 if threads[-1] == 1 else 1) * (
            0.7 if compiled else 1
        ) * (1.5 if run.guard.parts > 1 else 1)  # fmt: skip

    monkeypatch.setattr(tune, "_time", seconds)
    settings = SETTINGS.model_copy(update={"dtype": "auto", "tune": "full", "rows": 8, "steps": 3})
    said: list[str] = []
    run = start(Stacked(), Next(rows=8), settings, tmp_path / "a", log=said.append)
    assert run.plan["way"] == {"dtype": "bfloat16", "threads": 1, "compiled": True, "parts": 1}
    assert len(tried) == len(set(tried)) == 6
    assert any("5.71 times as fast" in text for text in said)
    run.closing.close()
    short = settings.model_copy(update={"tune": "auto"})
    run = start(Stacked(), Next(rows=8), short, tmp_path / "b", log=silent)
    assert not run.plan["way"]["compiled"], "three steps are not worth a compiler"
    run.closing.close()
    threads.append(2)
    run = start(Stacked(), Next(rows=8), settings, tmp_path / "a", log=silent)
    assert threads[-1] == 1 and run.dtype == torch.bfloat16
    run.closing.close()


def test_off_may_be_yamls() -> None:
    assert TrainSettings(steps=1, tune=False).tune == "off"
