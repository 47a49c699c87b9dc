"""The guard on every micro-batch, on every rank, in both formats; early stopping that survives; the same bits twice."""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.train.hooks import Hook
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import Guarding, TrainSettings

from .test_checkpoint import Do, result
from .test_spikes import Poisoned, Scarred
from .toys import Next, build, silent

SCRIPT = Path(__file__)


class BadPart(Next):
    """One micro-batch of a step has a loss, or an activation's gradient, that is not finite."""

    def __init__(self, at: dict[int, int], how: str, value: float, accumulate: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.bad, self.how, self.value, self.accumulate = at, how, value, accumulate
        self.calls = 0

    def loss(self, model: torch.nn.Module, batch: Any) -> dict[str, torch.Tensor]:
        step, part = divmod(self.calls, self.accumulate)
        self.calls += 1
        sums = super().loss(model, batch)
        if self.bad.get(step + 1) == part + 1:
            if self.how == "loss":
                return sums | {"loss": sums["loss"] * self.value}
            zero = (model.norm.bias * 0).sum()
            zero.register_hook(lambda gradient: gradient * self.value)
            return sums | {"loss": sums["loss"] + zero}
        return sums

    def describe(self, batch: Any) -> list[str]:
        return [f"row {int(n)}" for n in batch.inputs["tokens"][:, 0]]


class Watch(Hook):
    """Keeps the weights and momenta after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, torch.Tensor]] = []

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        self.seen.append(copy.deepcopy(run.model.state_dict() | run.optimizer.tensors() | run.average.tensors()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_no_micro_batch_gets_through(tmp_path: Path, dtype: str, how: str, value: float) -> None:
    """Each of three micro-batches in turn, the first step of all too: weights, momenta and averages stay as they were."""
    said: list[str] = []
    settings = TrainSettings(steps=8, accumulate=3, ema=0.5, dtype=dtype, track=[], warmup_steps=0, save_every=1e9)
    run = start(build(), BadPart({1: 3, 4: 1, 6: 2, 7: 3}, how, value), settings, tmp_path, log=said.append, plan=False)
    watch = Watch()
    run.hooks.insert(0, watch)
    begun = copy.deepcopy(run.model.state_dict())
    metrics = train(run)
    assert metrics["skipped"] == 4
    assert all(tensor.isfinite().all() for state in watch.seen for tensor in state.values())
    assert all(torch.equal(watch.seen[0][name], tensor) for name, tensor in begun.items())
    for bad in (4, 6, 7):
        before, after = watch.seen[bad - 2], watch.seen[bad - 1]
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not torch.equal(watch.seen[4]["one.weight"], watch.seen[3]["one.weight"])
    for sentence, (step, part) in zip(said, ((1, 3), (4, 1), (6, 2), (7, 3)), strict=True):
        assert sentence.startswith(f"step {step}: ") and "documents row " in sentence and "batch " in sentence
        if how == "loss":
            assert f"micro-batch {part} of 3" in sentence
        else:
            assert "the gradient of norm.bias is not" in sentence
    records = [json.loads(line) for line in (tmp_path / "steps.jsonl").read_text().splitlines()[1:]]
    assert [r["step"] for r in records if r.get("skipped") == "not finite"] == [1, 4, 6, 7]
    assert all(len(r["documents"]) == 24 for r in records if "skipped" in r)


def rank_work(folder: Path) -> None:
    """On two ranks: rank 0 is bad in step 2, rank 1 in steps 4 and 5."""
    import torch.distributed as dist

    from modelworks.base.distributed import rank

    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    objective = BadPart([{2: 1}, {4: 2, 5: 1}][rank()], "loss", math.nan, 2, rows=4, rank=rank(), ranks=2)
    settings = TrainSettings(steps=7, accumulate=2, dtype="float32", track=[], save_every=1e9)
    said: list[str] = []
    run = start(build(), objective, settings, folder, log=said.append, plan=False)
    metrics = train(run)
    weights = {name: tensor.tolist() for name, tensor in run.model.state_dict().items()}
    (folder / f"{rank()}.json").write_text(
        json.dumps({"said": said, "weights": weights, "skipped": metrics["skipped"]})
    )
    dist.barrier()
    dist.destroy_process_group()


def test_no_rank_gets_through(tmp_path: Path) -> None:
    root = SCRIPT.parents[2]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2",
    }  # fmt: skip
    work = "import sys, pathlib; from train.test_guard import rank_work; rank_work(pathlib.Path(sys.argv[1]))"
    line = [sys.executable, "-c", work]
    ranks = [subprocess.Popen([*line, str(tmp_path)], env=environment | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=100) for process in ranks] == [0, 0]
    one, two = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert one["weights"] == two["weights"] and one["skipped"] == two["skipped"] == 3
    assert all(math.isfinite(value) for tensor in one["weights"].values() for value in torch.tensor(tensor).flatten())
    said = one["said"]
    assert "step 2: the loss is nan in micro-batch 1 of 2 of rank 0 " in said[0] and "documents row" in said[0]
    assert "step 4: the loss is nan in micro-batch 2 of 2 of rank 1 " in said[1]
    assert "step 5: the loss is nan in micro-batch 1 of 2 of rank 1 " in said[2] and not two["said"]


SCRIPTED = {5: 3.0, 10: 1.0, 15: 2.0, 20: 2.5, 25: 0.1}


class Scripted(Next):
    """Its validation losses are given by step."""

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"loss": SCRIPTED[self.at]}


@pytest.mark.parametrize("ema", [0.0, 0.8])
@pytest.mark.parametrize("stops", [(), (3,), (10,), (11,), (14, 16), (10, 15, 19)])
def test_early_stopping_ends_with_the_best_whatever_comes_between(
    tmp_path: Path, ema: float, stops: tuple[int, ...]
) -> None:
    """Best at step 10, over at step 20: the weights (averages, if any) of step 10, bit for bit, after any stops."""
    settings = TrainSettings(
        steps=100, evaluate_every=5, patience=2, ema=ema, dtype="float32", track=[], save_every=1e9, warmup_steps=0
    )
    plain = settings.model_copy(update={"patience": 0, "evaluate_every": 0})
    oracle = start(build(0.2), Next(), plain, tmp_path / "o", log=silent, plan=False)
    best: dict[str, torch.Tensor] = {}

    def keep(run: Run) -> None:
        if run.step == 10:
            kept = run.average.tensors() if run.average else dict(run.model.named_parameters())
            best.update({name: tensor.detach().clone() for name, tensor in kept.items()})
            run.stopped = "enough"

    oracle.hooks.insert(-1, Do(keep))
    train(oracle)
    for at in (*stops, 0):

        def stop(run: Run, at: int = at) -> None:
            if run.step == at:
                os.kill(os.getpid(), signal.SIGTERM)

        run = start(build(0.2), Scripted(), settings, tmp_path / "r", log=silent, plan=False)
        run.hooks.insert(-1, Do(stop))
        if at:
            with pytest.raises(SystemExit):
                train(run)
            continue
        metrics = train(run)
    assert run.step == 20 and "since step 10" in run.stopped
    assert metrics["validation_loss"] == 1.0 and metrics["best_step"] == 10
    assert all(torch.equal(tensor, best[name]) for name, tensor in run.model.named_parameters())


def test_a_spike_does_not_become_the_best(tmp_path: Path) -> None:
    """The run goes back behind an evaluation, which is made again; the best is that of a run without the bad batches."""

    def run_of(folder: str, objective: Next) -> tuple[Any, ...]:
        settings = TrainSettings(
            steps=64, accumulate=2, evaluate_every=4, patience=50, ema=0.5, dtype="float32", track=[], save_every=1e9,
            guard=Guarding(spikes=8.0),
        )  # fmt: skip
        run = start(Scarred(), objective, settings, tmp_path / folder, log=silent, plan=False)
        weights, metrics, lines = result(run, train(run))
        return weights, metrics, [line for line in lines if "validation_loss" in line]

    assert run_of("a", Poisoned({40})) == run_of("b", Poisoned({40, 41}, instead=math.nan))


def test_the_same_run_twice_is_the_same(tmp_path: Path) -> None:
    """Deterministic mode is on for the run alone, is said, and leaves nothing to measurements."""
    said: list[str] = []
    settings = TrainSettings(
        steps=12, accumulate=2, track=[], ema=0.9, evaluate_every=5, guard=Guarding(deterministic=True)
    )
    results = []
    for name in ("a", "b"):
        run = start(build(0.3), Next(), settings, tmp_path / name, log=said.append)
        assert torch.are_deterministic_algorithms_enabled()
        assert run.dtype == torch.float32 and run.settings.tune == "off"
        results.append(result(run, train(run)))
        assert not torch.are_deterministic_algorithms_enabled()
    lines = [(tmp_path / name / "steps.jsonl").read_text().splitlines() for name in ("a", "b")]
    assert results[0][0] == results[1][0] and lines[0] == lines[1]
    assert said[0].startswith("deterministic: the same run gives the same bits again")
