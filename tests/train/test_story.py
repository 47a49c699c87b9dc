"""What a run tells: records, TensorBoard, W&B, samples, pictures of the weights; and that telling changes nothing."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from modelworks.base.errors import UserError
from modelworks.base.protocols import Sample
from modelworks.train import histograms
from modelworks.train.adamw import AdamW
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.samples import Samples
from modelworks.train.settings import TrainSettings

from .toys import Next, build, silent

SETTINGS = TrainSettings(
    steps=12, evaluate_every=5, log_every=4, dtype="float32", warmup_steps=1, track=["tensorboard"]
)  # fmt: skip


class Echo:
    """A sampler that answers with the prompt backwards."""

    def __init__(self, fails: bool = False) -> None:
        self.fails, self.asked = fails, 0

    def sample(self, prompts: Sequence[Sequence[int]], max_new_tokens: int, **settings: Any) -> list[Sample]:
        self.asked += 1
        if self.fails:
            raise UserError("this model cannot be sampled.")
        torch.rand(3)  # a sampler may draw: training must not notice
        return [Sample(list(p)[::-1], f"<b>{list(p)[::-1]}</b>\n路径", "length") for p in prompts]


def begin(folder: Path, settings: TrainSettings = SETTINGS, sampler: Echo | None = None, **more: Any) -> Run:
    run = start(build(dropout=0.2), Next(), settings, folder, log=more.get("log", silent), plan=False)
    if sampler:
        run.samples = Samples(sampler, [("one two", [1, 2]), ("three", [3])])
    return run


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A run with everything on."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("told")
    run = begin(folder, sampler=Echo())
    train(run)
    return run, folder


def events(folder: Path) -> Any:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"histograms": 0, "tensors": 0})
    found.Reload()
    return found


def test_telling_changes_no_weight(told: tuple[Run, Path], tmp_path: Path) -> None:
    run = begin(tmp_path, TrainSettings(**(SETTINGS.model_dump() | {"track": []})))
    train(run)
    for name, weight in run.model.state_dict().items():
        assert torch.equal(weight, told[0].model.state_dict()[name]), name


def test_every_record_has_what_is_documented(told: tuple[Run, Path]) -> None:
    from modelworks.train.trackers import Jsonl

    written = lines(told[1])
    steps = [line for line in written if "loss" in line]
    assert [line["step"] for line in steps] == [4, 8, 12]
    documented = Jsonl.__doc__ or ""
    assert all(f"`{name}`" in documented for line in written for name in line if "right" not in name)
    now = steps[-1]
    assert 0 < now["memory"] <= now["memory_peak"] < 1e11 and now["seconds_left"] == 0 and now["gradient_norm"] > 0
    assert 0 < steps[0]["energy_wh"] <= now["energy_wh"] < 1
    assert [line["step"] for line in written if "validation_loss" in line] == [5, 10, 12]


def test_samples_are_in_the_record_and_in_tensorboard(told: tuple[Run, Path]) -> None:
    said = [line for line in lines(told[1]) if "sample" in line]
    assert [(line["step"], line["sample"]) for line in said] == [
        (step, name) for step in (5, 10, 12) for name in ("sample_1", "sample_2")
    ]
    assert said[0]["prompt"] == "one two" and said[0]["text"] == "<b>[2, 1]</b>\n路径"
    shown = events(told[1]).Tensors("sample_2/text_summary")
    text = shown[0].tensor_proto.string_val[0].decode()
    assert [event.step for event in shown] == [5, 10, 12] and "路径" in text
    assert all(line.startswith("    ") for line in text.splitlines())  # code, so no markup of a model is read


def test_a_sampler_that_refuses_ends_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    sampler = Echo(fails=True)
    run = begin(tmp_path, sampler=sampler, log=said.append)
    train(run)
    assert run.step == 12 and sampler.asked == 1 and sum("cannot be sampled" in text for text in said) == 1


def test_ratios_and_histograms_are_those_of_the_watched_step(tmp_path: Path) -> None:
    """By hand: the weights before and after step 5 with AdamW's and Muon's own arithmetic, seen from outside."""
    run = begin(tmp_path)
    before: dict[str, torch.Tensor] = {}
    gradients: dict[str, torch.Tensor] = {}
    after: dict[str, torch.Tensor] = {}
    inner = run.optimizer.step

    def step(scale: float, inertia: float) -> None:
        if run.step == 4:  # step 5 is the one
            before.update({n: p.detach().clone() for n, p in run.model.named_parameters()})
            gradients.update({n: p.grad.clone() for n, p in run.model.named_parameters() if p.grad is not None})
        inner(scale, inertia)
        if run.step == 4:
            after.update({n: p.detach().clone() for n, p in run.model.named_parameters()})

    run.optimizer.step = step  # type: ignore[method-assign]
    train(run)
    found = events(tmp_path)
    for name in before:
        ratios = found.Scalars(f"update_ratio/{name}")
        assert [event.step for event in ratios] == [5, 10, 12]
        truth = (after[name] - before[name]).norm() / before[name].norm()
        if before[name].norm() > 0:
            assert ratios[0].value == pytest.approx(float(truth), rel=1e-4)
        for kind, values in (("weights", after[name]), ("gradients", gradients[name])):
            shown = found.Histograms(f"{kind}/{name}")[0].histogram_value
            assert shown.num == values.numel() and shown.sum == pytest.approx(float(values.sum()), abs=1e-4)
            counts, edges = np.histogram(values.numpy(), len(shown.bucket))
            assert list(shown.bucket) == counts.tolist()
            assert np.allclose(shown.bucket_limit, edges[1:])


def test_much_is_looked_at_in_part_and_bad_numbers_are_left_out() -> None:
    torch.manual_seed(0)
    big = torch.randn(300, 1000)
    some = histograms.some(big)
    assert 4096 < some.numel() <= histograms.SEEN and abs(float(some.std()) - 1) < 0.05
    picture = histograms.of(np.array([0.0, 1.0, math.nan, math.inf], np.float32))
    assert picture.seen == 2 and picture.total == 1 and int(picture.counts.sum()) == 2
    assert histograms.of(np.array([math.nan], np.float32)).seen == 0


def leveldb(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format (blocks of 32 KiB; crc, length, kind before each part)."""
    at, parts = 7, b""  # after W&B's own seven bytes
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if not kind:
            return
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def test_weights_and_biases_offline(tmp_path: Path) -> None:
    """A real session in W&B's offline mode, its file read back with W&B's own record format."""
    pytest.importorskip("wandb", reason="wandb is not installed here: pip install wandb")
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.train import test_story as t
run = t.begin(t.Path({str(tmp_path)!r}), t.TrainSettings(**(t.SETTINGS.model_dump() | {{"track": ["wandb"]}})), t.Echo())
t.train(run)
"""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "MODELWORKS_QUIET": "1"}
    environment |= {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    from wandb.proto import wandb_internal_pb2

    rows = []
    for data in leveldb(file.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data)
        if record.HasField("history"):
            items = record.history.item
            rows.append({(i.key or "/".join(i.nested_key)): json.loads(i.value_json) for i in items})
    by_step: dict[int, dict[str, Any]] = {int(row["_step"]): row for row in rows}
    assert set(by_step) >= {4, 5, 8, 10, 12}
    assert by_step[4]["gradient_norm"] > 0 and "validation_loss" in by_step[5]
    assert any("sample_1" in key for key in by_step[5]) and any("update_ratio" in key for key in by_step[5])
    assert by_step[5]["gradients/one.bias/_type"] == "histogram"
    assert sum(by_step[5]["gradients/one.bias/values"]) == 16  # the bias has as many


def test_adamw_is_torchs_bit_for_bit() -> None:
    """Two groups, a missing gradient, a changing rate, both formats; torch.optim is the oracle."""
    torch.manual_seed(0)
    shapes = [(7, 5), (5,), (3, 3)]
    ours = [nn.Parameter(torch.randn(s)) for s in shapes] + [nn.Parameter(torch.randn(4).bfloat16())]
    theirs = [nn.Parameter(p.detach().clone()) for p in ours]

    def groups(p: list[nn.Parameter]) -> list[dict[str, Any]]:
        return [{"params": p[:2], "weight_decay": 0.1}, {"params": p[2:], "weight_decay": 0.0}]

    mine = AdamW(groups(ours), lr=1e-2, betas=(0.9, 0.95), eps=1e-8)
    torchs = torch.optim.AdamW(groups(theirs), lr=1e-2, betas=(0.9, 0.95), eps=1e-8, fused=True)
    for step in range(6):
        for a, b in zip(ours, theirs, strict=True):
            gradient = torch.randn(a.shape).to(a.dtype)
            a.grad, b.grad = gradient.clone(), gradient.clone()
        if step == 2:
            ours[1].grad = theirs[1].grad = None
        for optimizer in (mine, torchs):
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
        mine.step()
        torchs.step()
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a, b)
        for what, value in mine.state[a].items():
            assert torch.equal(value, torchs.state[b][what])


def test_a_short_run_does_not_import_the_compiler(tmp_path: Path) -> None:
    """torch._dynamo takes 1.3 s and 80 MB; a run that compiles nothing must not pay for it."""
    code = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tests.train import test_story as t
t.train(t.begin(t.Path({str(tmp_path)!r}), t.TrainSettings(**(t.SETTINGS.model_dump() | {{"track": []}}))))
print("torch._dynamo" in sys.modules)
"""
    code = code.replace("import torch\n", "")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["False"], done.stdout + done.stderr[-2000:]
