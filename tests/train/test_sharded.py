"""A run on several ranks (gloo) is the run of one process: same losses, same gradients, from one checkpoint to the next.

One process imports torch and forks the ranks of every scenario, so that a scenario takes a second.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelworks.base.errors import ModelworksError, UserError
from modelworks.train.settings import Parallel, TrainSettings

pytestmark = pytest.mark.timeout(600)  # ranks of a machine that is busy wait for each other
SCRIPT = Path(__file__)
ROOT = SCRIPT.parents[2]
STEPS, ROWS = 6, 8


class Step(nn.Module):
    """A block of two matrices of odd sizes."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Tower(nn.Module):
    """Blocks between tied words, for float64: the families' norms are float32 inside."""

    def __init__(self, width: int = 10, inner: int = 14, words: int = 11) -> None:
        super().__init__()
        self.stem = nn.Embedding(words, width)
        self.blocks = nn.ModuleList(Step(width, inner) for _ in range(3))
        self.head = nn.Linear(width, words, bias=False)
        self.head.weight = self.stem.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.stem(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def model_of(family: str) -> tuple[nn.Module, dict[str, str]]:
    """A tiny model with nothing at zero, and how it may be cut."""
    from modelworks.models import qwen3

    torch.manual_seed(5)
    if family == "tower":
        model, plan = Tower().double(), {"blocks.*.up": "columns", "blocks.*.down": "rows"}
    else:  # grouped heads, norms of heads, gate, tied words
        shape = {"d_model": 16, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "d_head": 6, "d_ff": 20}
        model, plan = qwen3.build(qwen3.Config(vocab_size=11, max_len=32, **shape)), qwen3.TENSOR_PLAN
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, plan


def objective_of(spec: dict[str, Any]) -> Any:
    from train.toys import Next

    from modelworks.base.distributed import share, shares

    class Words(Next):
        """The same, of a model with a language head; two documents a row."""

        def loss(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
            tokens = batch.inputs["tokens"]
            documents = torch.ones_like(tokens)
            documents[:, 3:] = 2
            return {"loss": model(tokens, documents=documents, labels=batch.inputs["labels"]).losses.sum()}

    kind = Next if spec["family"] == "tower" else Words
    made = kind(rows=ROWS // shares(), rank=share(), ranks=shares())
    made.state_dict = lambda: {"at": made.at, "data": rank() if "data" in spec.get("odd", ()) else 0}
    return made


def rank() -> int:
    from modelworks.base import distributed

    return distributed.rank()


def work(spec: dict[str, Any]) -> None:
    """One rank of a scenario; rank 0 leaves losses, gradient norms, and the whole model."""
    from train.toys import silent

    from modelworks.nn.context import spread_context
    from modelworks.train.loop import train
    from modelworks.train.run import start
    from modelworks.train.sharded import Plan, arrange

    folder, parallel = Path(spec["folder"]), Parallel(**spec["parallel"])
    arrange(parallel)
    settings = TrainSettings(
        steps=STEPS, rows=ROWS, accumulate=2, ema=0.8, evaluate_every=3, patience=9, save_every=1e9, dtype="float32",
        track=[], warmup_steps=2, clip=0.5 + 0.1 * (rank() if "clip" in spec.get("odd", ()) else 0), parallel=parallel, 
        optimizer="muon" if spec["family"] == "tower" else "adamw",
    )  # fmt: skip
    model, tensor_plan = model_of(spec["family"])
    objective = objective_of(spec)
    settings = settings.model_copy(update={"rows": objective.rows})
    plan = Plan(tensor_plan, spread_context)
    run = start(model, objective, settings, folder, log=silent, plan=False, spread=plan)
    curve: list[list[float]] = []
    stop = spec.get("stop", 0)

    class Watch(type(run.hooks[0])):  # type: ignore[misc]
        def __call__(self, run: Any, logs: dict[str, float]) -> None:
            curve.append([run.step, logs["loss"], logs["gradient_norm"]])
            if run.step == stop and rank() == spec["ranks"] - 1:
                run.interrupt.number = 15
            super().__call__(run, logs)

    run.hooks[0].__class__ = Watch
    try:
        metrics = train(run)
        model = run.shards.whole() if run.shards else model
        if rank() == 0:
            save_file(
                {name: p.detach().clone() for name, p in model.named_parameters()}, folder / "weights.safetensors"
            )
            (folder / "metrics.json").write_text(json.dumps(metrics))
    finally:
        if rank() == 0:
            with open(folder / "curve.jsonl", "a") as file:
                file.writelines(json.dumps(line) + "\n" for line in curve)


def families() -> list[str]:
    """Those that say how their matrices may be cut."""
    from modelworks.base import folders

    return [name for name in folders.names("modelworks.models") if hasattr(find(name), "TENSOR_PLAN")]


def find(name: str) -> Any:
    from modelworks.base import folders

    return folders.find("modelworks.models", name)


def gradients(spec: dict[str, Any]) -> None:
    """Of each family's tiny model, spread and whole, from the same row; rank 0 leaves how far they are apart."""
    from importlib import import_module

    from modelworks.data.order import Order
    from modelworks.nn.context import spread_context
    from modelworks.train.optim import Optimizer
    from modelworks.train.sharded import Plan, Shards, arrange, gathered, like

    settings = TrainSettings(steps=1, parallel=arrange(Parallel(**spec["parallel"])))
    order = Order(9, 2, 1)
    assert (order.rank, order.world) == (0, 1)  # both work on all rows
    lines = []
    for family in families():
        config = import_module(f"contracts.tiny.{family}").BASE.model_copy(update={"dropout": 0.0})
        torch.manual_seed(1)
        one, model = find(family).build(config), find(family).build(config)
        for parameter in one.parameters():
            nn.init.normal_(parameter, std=0.1)
        model.load_state_dict(one.state_dict())
        rows = {"tokens": torch.randint(0, 97, (3, 13)), "labels": torch.randint(0, 97, (3, 13))}
        rows["documents"] = torch.ones_like(rows["tokens"])
        rows["documents"][:, 6:], rows["documents"][0, 11:], rows["labels"][0, 11:] = 2, 0, -100
        shards = Shards(model, settings, Plan(find(family).TENSOR_PLAN, spread_context), torch.float32)
        optimizer = Optimizer(model, settings)
        loss, known = (net(**rows).losses.sum() for net in (model, one))
        loss.backward()
        known.backward()
        shards.collect(optimizer.own)
        apart, sizes = [abs(float(loss.detach()) / float(known.detach()) - 1)], [1.0]
        for name, parameter in one.named_parameters():
            mine = gathered(like(optimizer.names[name], optimizer.own[name].grad))
            apart.append(float((mine - parameter.grad).norm()))
            sizes.append(float(parameter.grad.norm()))
        worst = max(off / size for off, size in zip(apart, sizes, strict=True) if size > 1e-4)  # a key's bias has none
        lines.append([family, math.hypot(*apart) / math.hypot(*sizes), worst])
    if rank() == 0:
        (Path(spec["folder"]) / "curve.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def serve(scenarios: list[dict[str, Any]]) -> None:
    """Fork the ranks of each scenario in turn; what a rank had to say goes to `rank-N.txt`."""
    import torch.distributed as dist
    import torch.distributed.checkpoint.hf_storage
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel

    torch.set_num_threads(1)
    for spec in scenarios:
        folder = Path(spec["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        meeting = folder / "meeting"
        meeting.unlink(missing_ok=True)
        children = []
        for number in range(spec["ranks"]):
            if not (child := os.fork()):
                status = 0
                try:
                    if spec["ranks"] > 1:
                        dist.init_process_group(
                            "gloo", init_method=f"file://{meeting}", rank=number, world_size=spec["ranks"]
                        )
                    gradients(spec) if spec["family"] == "every" else work(spec)
                except SystemExit as stop:
                    status = int(stop.code or 0)
                except BaseException as error:
                    status = error.exit_status if isinstance(error, ModelworksError) else 1
                    said = str(error) if isinstance(error, ModelworksError) else traceback.format_exc()
                    (folder / f"rank-{number}.txt").write_text(said)
                os._exit(status)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        with open(folder / "statuses.jsonl", "a") as file:
            file.write(json.dumps(statuses) + "\n")


class Ran:
    """What a scenario left."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        *self.before, self.statuses = map(json.loads, (folder / "statuses.jsonl").read_text().splitlines())
        self.said = [path.read_text() for path in sorted(folder.glob("rank-*.txt"))]
        lines = (folder / "curve.jsonl").read_text().splitlines() if (folder / "curve.jsonl").is_file() else []
        self.curve = [json.loads(line) for line in lines]

    def fits(self, other: Ran) -> None:
        """Every loss and norm to a millionth, the weights, and what is kept as the best."""
        assert set(self.statuses) == {0}, f"{self.folder.name}: {self.said}"
        assert [line[0] for line in self.curve] == [line[0] for line in other.curve] == list(range(1, STEPS + 1))
        for mine, theirs in zip(self.curve, other.curve, strict=True):
            assert mine == pytest.approx(theirs, rel=1e-6), self.folder.name
        ours, known = (load_file(run.folder / "weights.safetensors") for run in (self, other))
        assert ours.keys() == known.keys()
        for name in known:
            if name.endswith(
                "key.bias"
            ):  # moves all scores of a query alike: its slope is rounding, AdamW its amplifier
                continue
            exact = known[name].dtype == torch.float64
            close = {"rtol": 1e-6, "atol": 1e-9} if exact else {"rtol": 1e-4, "atol": 1e-5}
            torch.testing.assert_close(ours[name], known[name], **close, msg=f"{self.folder.name}: {name}")
        metrics, kept = (json.loads((run.folder / "metrics.json").read_text()) for run in (self, other))
        assert metrics["validation_loss"] == pytest.approx(kept["validation_loss"], rel=1e-6)


def run(*scenarios: dict[str, Any]) -> list[Ran]:
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT / 'src'}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    words = [sys.executable, str(SCRIPT), json.dumps(scenarios)]
    subprocess.run(words, env=environment, check=True, timeout=600)
    return [Ran(Path(spec["folder"])) for spec in scenarios]


def spec(folder: Path, family: str = "tower", parallel: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    sizes = parallel or {}
    ranks = math.prod(size for name, size in sizes.items() if name != "offload")
    return {"folder": str(folder), "family": family, "ranks": ranks, "parallel": sizes, **more}


LAYOUTS: dict[str, dict[str, Any]] = {
    "two copies": {"data": 2},
    "two shards, offloaded": {"fsdp": 2, "offload": True},
    "two parts of matrices": {"tensor": 2},
}
MORE: dict[str, dict[str, Any]] = {
    "one, offloaded": {"offload": True},
    "four copies": {"data": 4},
    "two shards": {"fsdp": 2},
    "four shards": {"fsdp": 4},
    "copies of shards": {"data": 2, "fsdp": 2},
    "copies of parts": {"data": 2, "tensor": 2},
    "shards of parts": {"fsdp": 2, "tensor": 2},
}
LENGTHS: dict[str, dict[str, Any]] = {
    "two lengths": {"context": 2},
    "shards of lengths": {"fsdp": 2, "context": 2},
    "lengths of parts": {"context": 2, "tensor": 2},
}


def same(folder: Path, family: str, layouts: dict[str, dict[str, Any]]) -> None:
    one, *others = run(
        spec(folder / "one", family),
        *(spec(folder / name, family, parallel) for name, parallel in layouts.items()),
    )
    for other in others:
        other.fits(one)


def test_two_ranks_are_one_process(tmp_path: Path) -> None:
    same(tmp_path, "tower", LAYOUTS)


@pytest.mark.small
def test_every_layout_is_one_process(tmp_path: Path) -> None:
    same(tmp_path, "tower", MORE)


@pytest.mark.small
def test_a_decoder_is_one_process(tmp_path: Path) -> None:
    same(tmp_path, "qwen3", {"shards of parts": MORE["shards of parts"], **LENGTHS})


def test_every_family_cut_along_its_matrices_and_its_rows(tmp_path: Path) -> None:
    heads, rows = run(
        spec(tmp_path / "tensor", "every", {"tensor": 2}), spec(tmp_path / "context", "every", {"context": 2})
    )
    for ran in (heads, rows):
        assert ran.statuses == [0, 0], ran.said
        assert [line[0] for line in ran.curve] == families() and len(ran.curve) >= 11
        assert not [line for line in ran.curve if line[1] > 2e-6 or line[2] > 1e-5]


def test_from_one_rank_to_two_to_four_and_back(tmp_path: Path) -> None:
    """From whole files into shards, from shards to other shards, and back into one process, with averages and momenta."""
    moved = tmp_path / "moved"
    one, *_, last = run(
        spec(tmp_path / "one"),
        spec(moved, stop=1),
        spec(moved, parallel={"fsdp": 2}, stop=2),
        spec(moved, parallel={"fsdp": 2, "tensor": 2}, stop=4),
        spec(moved),
    )
    assert last.before == [[143], [143] * 2, [143] * 4], last.said
    last.fits(one)
    kinds = {path.suffix for path in (moved / "checkpoints" / "step-000000004").iterdir()}
    assert kinds == {".safetensors", ".json"}  # and no pickle


@pytest.mark.small
def test_a_damaged_shard_is_seen_and_the_checkpoint_before_it_taken(tmp_path: Path) -> None:
    whole, folder = tmp_path / "one", tmp_path / "moved"
    run(spec(whole), spec(folder, stop=2), spec(folder, parallel={"fsdp": 2}, stop=4))
    shard = sorted((folder / "checkpoints" / "step-000000004").glob("shard-*.safetensors"))[1]
    data = bytearray(shard.read_bytes())
    data[-9] ^= 1
    shard.write_bytes(data)
    (ran,) = run(spec(folder, parallel={"data": 2, "fsdp": 2}))
    assert ran.before == [[143], [143] * 2] and [line[0] for line in ran.curve] == [1, 2, 3, 4, 3, 4, 5, 6]
    ran.curve = ran.curve[:2] + ran.curve[4:]
    ran.fits(Ran(whole))


def test_ranks_that_disagree(tmp_path: Path) -> None:
    data, clip, size = run(
        spec(tmp_path / "data", parallel={"fsdp": 2}, odd=["data"]),
        spec(tmp_path / "clip", parallel={"data": 2}, odd=["clip"]),
        spec(tmp_path / "size", parallel={"data": 2}) | {"parallel": {"fsdp": 4}},
    )
    assert data.statuses == clip.statuses == size.statuses == [2, 2]
    assert all("rank 1 has another data set" in said for said in data.said)
    assert all("rank 1 has another setting clip" in said for said in clip.said)
    assert all("is 4 ranks and 2 run; start 4" in said for said in size.said)


def test_what_cannot_be_cut() -> None:
    from modelworks.train import split

    class Ranks:
        def size(self) -> int:
            return 4

    model, plan = model_of("qwen3")
    with pytest.raises(UserError, match=r"the 2 heads of stack.blocks.0.attention.key do not divide by tensor 4"):
        split.apply(model, {name: kind for name, kind in plan.items() if name.endswith("key")}, Ranks())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="only plain matrices"):
        split.apply(model, {"stack.blocks.*.attention_norm": "rows"}, Ranks())  # type: ignore[arg-type]
    with pytest.raises(UserError, match="no plan says how"):
        split.apply(model, {}, Ranks())  # type: ignore[arg-type]


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
