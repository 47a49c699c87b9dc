"""Checkpoints: exact resume, damage found and gone around, a full disk that costs nothing, state packed and unpacked."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelworks.base.errors import FailureError, UserError
from modelworks.train import checkpoint
from modelworks.train.hooks import Hook
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings

from .toys import Net, Next, build, silent

TIMES = {"seconds", "seconds_left", "tokens_per_second", "share_of_peak", "memory", "memory_peak", "energy_wh"}
SETTINGS = TrainSettings(
    steps=24, accumulate=2, ema=0.9, evaluate_every=5, patience=3, save_every=1e9, log_every=4, dtype="float32", track=[]
)  # fmt: skip


class Do(Hook):
    """Calls a function with the run once a step is done, before the save hook sees it."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        self.what(run)


def begin(
    folder: Path, settings: TrainSettings = SETTINGS, objective: Any = None, do: Any = None, log: Any = silent
) -> Run:
    run = start(build(dropout=0.2), objective or Next(), settings, folder, log=log, plan=False)
    if do:
        run.hooks.insert(-1, Do(do))
    return run


def result(run: Run, metrics: dict[str, float]) -> tuple[Any, ...]:
    """All that must be equal: weights, metrics, and the log but its times."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    plain = [{k: v for k, v in line.items() if k not in TIMES} for line in lines]
    weights = {name: tensor.tolist() for name, tensor in run.model.state_dict().items()}
    return weights, {k: v for k, v in metrics.items() if k not in TIMES}, plain


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ...]:
    """The run that nobody disturbed."""
    torch.set_num_threads(1)
    run = begin(tmp_path_factory.mktemp("calm"))
    return result(run, train(run))


@pytest.mark.parametrize("stops", [(1,), (4, 5), (7, 8, 9, 23), (10, 20)])
def test_resume_is_exact(tmp_path: Path, calm: tuple[Any, ...], stops: tuple[int, ...]) -> None:
    """Dropout, the second epoch's order, accumulation, EMA, early stopping and log windows go on as if nothing was."""

    def stop(run: Run) -> None:
        if run.step in stops and run.step > resumed_at:
            os.kill(os.getpid(), signal.SIGTERM)

    resumed_at = 0
    for at in stops:
        run = begin(tmp_path, do=stop)
        assert run.step == resumed_at
        with pytest.raises(SystemExit) as end:
            train(run)
        assert end.value.code == 143 and run.step == at
        resumed_at = at
    torch.manual_seed(99)
    run = begin(tmp_path)
    assert result(run, train(run)) == calm
    again = begin(tmp_path)  # a finished run is taken up as it ended
    assert again.done and result(again, train(again)) == calm


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("at", [10, 20, 24])
def test_a_signal_breaks_off_an_evaluation(
    tmp_path: Path, calm: tuple[Any, ...], at: int, number: int, status: int
) -> None:
    """In the middle, at a step that is logged too, and at the very last step: the restart makes up for it."""

    class Slow(Next):
        def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
            if self.at == 2 * at:  # two batches a step
                os.kill(os.getpid(), number)
                time.sleep(60)
            return super().evaluate(model)

    began = time.monotonic()
    run = begin(tmp_path, objective=Slow())
    with pytest.raises(SystemExit) as end:
        train(run)
    assert end.value.code == status and time.monotonic() - began < 10
    run = begin(tmp_path)
    assert run.step == at
    assert result(run, train(run)) == calm


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 4
    path.write_bytes(data)


def blank(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(
        data[: len(data) // 2] + bytes(min(64, len(data) // 4)) + data[len(data) // 2 + min(64, len(data) // 4) :]
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with checkpoints of steps 6 and 9."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("twice")

    def save(run: Run) -> None:
        if run.step in (3, 6):
            checkpoint.save(run)
        if run.step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit):
        train(begin(folder, do=save))
    assert [path.name for path in checkpoint.found(folder)] == ["step-000000009", "step-000000006"]
    return folder


@pytest.mark.parametrize("damage", [flip, blank, cut, Path.unlink])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.safetensors", "state.safetensors", "state.json", "manifest.json"]
)
def test_damage_is_found_and_gone_around(
    twice: Path, tmp_path: Path, calm: tuple[Any, ...], name: str, damage: Any
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(twice, folder)
    damage(folder / "checkpoints" / "step-000000009" / name)
    said: list[str] = []
    run = begin(folder, log=said.append)
    if name == "manifest.json" and damage is not Path.unlink and run.step == 9:
        pytest.fail("a damaged manifest was trusted")
    assert run.step == 6 and len(said) == 1 and "step-000000009" in said[0]
    if damage is flip:
        assert result(run, train(run)) == calm
    run.closing.close()


def test_swapped_files_and_two_damaged_checkpoints(twice: Path, tmp_path: Path, calm: tuple[Any, ...]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(twice, folder)
    newer, older = checkpoint.found(folder)
    shutil.copy(older / "model.safetensors", newer / "model.safetensors")
    cut(older / "state.json")
    said: list[str] = []
    run = begin(folder, log=said.append)
    assert run.step == 0 and len(said) == 2
    assert result(run, train(run)) == calm


@pytest.mark.parametrize("room", [0, 200, 3000, 9000, 30000])
def test_a_full_disk_costs_nothing(tmp_path: Path, calm: tuple[Any, ...], room: int) -> None:
    """Writes past `room` bytes a file fail from step 5 on: one sentence, the old checkpoint stands, the run goes on later."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(run: Run) -> None:
        if run.step == 3:
            checkpoint.save(run)
        if run.step == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
            checkpoint.save(run)

    run = begin(tmp_path, do=fill)
    try:
        with pytest.raises(FailureError, match=r"step-000000005.*(disk is full).*untouched") as trouble:
            train(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert trouble.value.exit_status == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir() if path.name != ".lock"] == ["step-000000003"]
    run = begin(tmp_path)
    assert run.step == 3
    assert result(run, train(run)) == calm


def test_another_run_is_refused(twice: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(twice, folder)
    with pytest.raises(UserError, match=r"learning_rate 0\.003, not 0\.5"):
        begin(folder, SETTINGS.model_copy(update={"learning_rate": 0.5}))
    with pytest.raises(
        UserError,
        match=r"belongs to another model .*stem\.weight is \[11, 16\] in it and \[11, 24\] here|belongs to another",
    ):
        start(Net(width=24), Next(), SETTINGS, folder, log=silent, plan=False)
    run = begin(folder, SETTINGS.model_copy(update={"save_every": 5.0, "log_every": 1}))  # these change nothing learned
    assert run.step == 9
    with pytest.raises(UserError, match="another modelworks process"):
        begin(folder)
    run.closing.close()


def test_only_the_newest_two_are_kept_and_all_are_sealed(tmp_path: Path) -> None:
    run = begin(tmp_path, SETTINGS.model_copy(update={"save_every": 0.0, "patience": 0}))
    train(run)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == [".lock", "step-000000023", "step-000000024"]
    kinds = {path.suffix for path in checkpoint.found(tmp_path)[0].iterdir()}
    assert kinds == {".safetensors", ".json"}


def test_tied_weights_stand_once_and_come_back(tmp_path: Path) -> None:
    model = torch.nn.ModuleDict({"stem": torch.nn.Embedding(5, 4), "head": torch.nn.Linear(4, 5, bias=False)})
    model["head"].weight = model["stem"].weight
    tensors = {name: tensor.clone() + 1 for name, tensor in checkpoint.model_tensors(model).items()}
    assert list(tensors) == ["stem.weight"]
    checkpoint.load_model(model, tensors, tmp_path)
    assert model["head"].weight is model["stem"].weight and torch.equal(model["head"].weight, tensors["stem.weight"])


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@given(value=plain)
def test_state_survives_packing_and_json(value: Any) -> None:
    tensors: dict[str, torch.Tensor] = {}
    packed = json.loads(
        json.dumps(checkpoint.pack({"a": value, "t": torch.arange(3), "deep": [{"t": torch.eye(2)}]}, tensors))
    )
    back = checkpoint.unpack(packed, tensors)
    assert (
        back["a"] == value
        and torch.equal(back["t"], torch.arange(3))
        and torch.equal(back["deep"][0]["t"], torch.eye(2))
    )


@pytest.mark.parametrize("value", [{1: 2}, {"x": object()}, {"x": {1, 2}}, [b"bytes"]])
def test_state_that_would_not_come_back_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        checkpoint.pack(value, {})
