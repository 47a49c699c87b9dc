"""Memory that runs out: halves have the gradient of the whole, and a run that was halved goes on and can be resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base import device
from modelworks.base.errors import FailureError
from modelworks.base.protocols import Batch
from modelworks.train import memory
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings

from .toys import Next, build, silent

SETTINGS = TrainSettings(steps=8, accumulate=2, track=[], dtype="float32", save_every=0, log_every=1, warmup_steps=2)


class Tight(Next):
    """Runs out of memory when more than `rows` rows come at once."""

    def __init__(self, rows: int, error: BaseException, at: int = 0, **options: Any) -> None:
        super().__init__(**options)
        self.fits, self.error, self.from_step = rows, error, at

    def loss(self, model: torch.nn.Module, batch: Batch) -> dict[str, torch.Tensor]:
        if torch.is_grad_enabled() and len(batch.inputs["tokens"]) > self.fits and self.at > 2 * self.from_step:
            super().loss(model, batch)["loss"].backward()  # some gradient is there already: it must not count
            raise self.error
        return super().loss(model, batch)


ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried to"),
]


def run_of(folder: Path, objective: Any, log: Any = silent, **changes: Any) -> Run:
    settings = SETTINGS.model_copy(update=changes)
    return start(build().double(), objective, settings, folder, log=log, plan=False)


def losses(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("fits", "parts"), [(4, 2), (3, 4), (1, 8)])
def test_halves_have_the_same_gradient(tmp_path: Path, error: BaseException, fits: int, parts: int) -> None:
    """The same road to 1e-12 in float64, also where the halves have uneven weights; told once a halving."""
    train(run_of(tmp_path / "whole", Next()))
    said: list[str] = []
    run = run_of(tmp_path / "halves", Tight(fits, error, at=3), log=said.append)
    train(run)
    assert run.guard.parts == parts
    assert losses(tmp_path / "halves") == pytest.approx(losses(tmp_path / "whole"), rel=1e-12)
    whole = run_of(tmp_path / "whole", Next())
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, whole.model.state_dict()[name], rtol=1e-9, atol=1e-12)
    assert said[0] == (
        "step 4: memory ran out with 8 rows at a time; from here on it is 4, which gives the same gradient."
    )
    assert len(said) == {2: 1, 4: 2, 8: 3}[parts]


def test_a_halved_run_resumes_with_the_same_halves(tmp_path: Path) -> None:
    straight = run_of(tmp_path / "a", Tight(4, MemoryError(), at=3))
    train(straight)
    stopped = run_of(tmp_path / "b", Tight(4, MemoryError(), at=3))
    stopped.hooks.append(_Stop(6))
    with pytest.raises(SystemExit):
        train(stopped)
    said: list[str] = []
    again = run_of(tmp_path / "b", Next(), log=said.append)  # with memory enough now: it must not change the bits
    assert again.step == 6 and again.guard.parts == 2
    train(again)
    assert not said
    assert all(
        torch.equal(a, b) for a, b in zip(straight.model.state_dict().values(), again.model.state_dict().values())
    )
    steps = [json.loads(line) for line in (tmp_path / "b" / "steps.jsonl").read_text().splitlines()]
    assert [line.get("parts", 1) for line in steps if "step" in line] == [1, 1, 1, 2, 2, 2, 2, 2]


class _Stop:
    def __init__(self, at: int) -> None:
        self.at = at

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        if run.step == self.at:
            raise SystemExit(1)

    def __getattr__(self, name: str) -> Any:
        return lambda *_: {}


def test_one_sentence_where_nothing_is_left_to_halve(tmp_path: Path) -> None:
    with pytest.raises(FailureError, match=r"^step 1: memory ran out with 1 row at a time; set max_len lower"):
        train(run_of(tmp_path / "a", Tight(0, MemoryError())))
    whole = Tight(4, MemoryError())
    whole.splittable = False
    with pytest.raises(FailureError, match=r"with 8 rows at a time, and this objective cannot be split; set rows"):
        train(run_of(tmp_path / "b", whole, accumulate=1))

    class Evaluated(Next):
        def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
            raise MemoryError

    with pytest.raises(FailureError, match=r"^memory ran out after step 4, outside"):
        train(run_of(tmp_path / "c", Evaluated(), evaluate_every=4))
    with pytest.raises(RuntimeError, match="shapes"):  # other errors are left alone
        train(run_of(tmp_path / "d", Tight(4, RuntimeError("shapes do not fit"))))


def test_parts_are_rows_in_order() -> None:
    batch = Next().batch(range(7))
    batch.source = [[n] for n in range(7)]
    parts = memory.cut(batch, 4)
    assert [len(part.inputs["tokens"]) for part in parts] == [2, 2, 2, 1]
    assert sum(part.weight for part in parts) == batch.weight
    assert [row for part in parts for row in part.source] == [[n] for n in range(7)]
    assert torch.equal(torch.cat([part.inputs["labels"] for part in parts]), batch.inputs["labels"])
    pairs = Batch({"pair": torch.arange(6)}, 6)
    assert [part.weight for part in memory.cut(pairs, 2)] == [3, 3]
    assert memory.divisible(pairs) and not memory.divisible(Batch({"x": torch.zeros(3)}, 17))
    empty = Batch({"tokens": torch.zeros(2, 3), "labels": torch.tensor([[1, -100, 1], [-100] * 3])}, 2)
    assert len(memory.cut(empty, 2)) == 1  # a row with nothing to predict has no gradient


def test_a_batch_larger_than_memory_is_halved_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_of(tmp_path, Next())
    batch = next(Next().batches(run.model))
    need = memory.left_behind(run, memory.cut(batch, 8)[0]) * memory.BACKWARD
    fixed = memory._fixed(run)
    for rows, parts in ((100, 1), (6, 2), (2.5, 4), (1.2, 8)):
        run.guard.parts = 1
        monkeypatch.setattr(device, "free_memory", lambda kind, rows=rows: (fixed + need * rows) / memory.ROOM)
        memory.foresee(run, batch)
        assert run.guard.parts == parts
    monkeypatch.setattr(device, "free_memory", lambda kind: fixed + need / 2)
    with pytest.raises(FailureError, match=r"needs about .* GB even with one row at a time, and .* GB are free"):
        memory.foresee(run, batch)


def test_the_plan_finds_it_out_and_a_restart_knows(tmp_path: Path) -> None:
    """The trial steps run out of memory: the plan says in how many parts, also to a run that died before it saved."""
    for trial in range(2):
        said: list[str] = []
        run = start(build(), Tight(4, MemoryError()), SETTINGS, tmp_path, log=said.append)
        assert run.guard.parts == run.plan["parts"] == 2 and run.plan["dtype"] == "float32"
        assert sum("memory ran out with 8 rows" in line for line in said) == 1 - trial
        run.closing.close()


SCRIPT = """
import resource, sys, torch
from train.test_memory import Wide
from modelworks.train.run import start
from modelworks.train.loop import train
from modelworks.train.settings import TrainSettings
torch.set_num_threads(1)
folder, room = sys.argv[1], int(sys.argv[2])
model = Wide()
settings = TrainSettings(steps=3, track=[], dtype="float32", save_every=1e9, log_every=1, optimizer="adamw")
from pathlib import Path
for _ in range(2):  # what is loaded once and for all
    model(torch.zeros(2, 8, dtype=torch.int64)).sum().backward()
model.zero_grad()
run = start(model, model.objective(), settings, Path(folder), plan=False)
if room:
    pages = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + room * 2**20, -1))
train(run)
print("parts", run.guard.parts)
"""


class Wide(torch.nn.Module):
    """A megabyte for each row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Embedding(11, 32)
        self.up = torch.nn.Linear(32, 16384)
        self.head = torch.nn.Linear(16384, 11)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.up(self.stem(tokens))))

    def objective(self) -> Next:
        return Next(rows=64)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
def test_a_real_allocation_that_fails(tmp_path: Path) -> None:
    """64 rows take over 64 MB at once; 48 MB are there. The losses are those of the run with room."""
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1"}
    environment |= {"MALLOC_ARENA_MAX": "1"}
    ended = []
    for name, room in (("roomy", 0), ("tight", 48)):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / name), str(room)]
        ended.append(subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False))
    assert [process.returncode for process in ended] == [0, 0], ended[1].stderr[-2000:]
    assert ended[0].stdout == "parts 1\n" and int(ended[1].stdout.split()[1]) > 1
    assert "memory ran out with 64 rows at a time; from here on it is 32" in ended[1].stderr
    assert losses(tmp_path / "tight") == pytest.approx(losses(tmp_path / "roomy"), rel=1e-6)
