"""Two ranks (gloo) take the same steps as one rank with twice the rows, and resume together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.train.settings import TrainSettings

pytestmark = pytest.mark.timeout(600)  # ranks of a machine that is busy wait for each other
SCRIPT = Path(__file__)
STEPS = 8


def work(folder: Path, ranks: int, stop: int) -> None:
    """Train in float64 on this rank; rank 0 writes the weights. `stop`: tell one rank only to stop after that step."""
    from train.toys import Next, build, silent

    from modelworks.base.distributed import rank
    from modelworks.train.loop import train
    from modelworks.train.run import start

    torch.set_num_threads(1)
    settings = TrainSettings(
        steps=STEPS, accumulate=2, ema=0.9, evaluate_every=4, save_every=1e9, dtype="float32", track=[], warmup_steps=2
    )
    model = build().double()
    objective = Next(rows=8 // ranks, rank=rank(), ranks=ranks)
    run = start(model, objective, settings, folder, log=silent, plan=stop == 0)
    if stop:
        hook = run.hooks[-1]
        after = type(hook).__call__

        class Told(type(hook)):
            def __call__(self, run, logs):
                if run.step == stop and rank() == ranks - 1:
                    run.interrupt.number = 15
                after(self, run, logs)

        hook.__class__ = Told
    metrics = train(run)
    if rank() == 0:
        save_file(model.state_dict(), folder / "weights.safetensors")
        (folder / "metrics.json").write_text(json.dumps(metrics))


def launch(folder: Path, ranks: int, stop: int = 0) -> list[int]:
    """Exit statuses of the ranks."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    root = SCRIPT.parents[2]
    environment = os.environ | {
        "PYTHONPATH": f"{root / 'src'}:{root / 'tests'}", "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(ranks), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(ranks), str(stop)], env=environment | {"RANK": str(r)}
        )
        for r in range(ranks)
    ]
    return [process.wait(timeout=100) for process in processes]


def test_two_ranks_are_one(tmp_path: Path) -> None:
    assert launch(tmp_path / "one", 1) == [0]
    assert launch(tmp_path / "two", 2) == [0, 0]
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-7, atol=1e-9)
    assert len(list((tmp_path / "two").glob("metrics.jsonl"))) == 1
    assert launch(tmp_path / "stopped", 2, stop=3) == [143, 143]  # one rank was told, both stop at the same step
    assert [path.name for path in (tmp_path / "stopped" / "checkpoints").glob("step-*")] == ["step-000000003"]
    assert launch(tmp_path / "stopped", 2) == [0, 0]
    again = load_file(tmp_path / "stopped" / "weights.safetensors")
    assert all(torch.equal(two[name], again[name]) for name in two)


if __name__ == "__main__":
    import torch.distributed as dist

    folder, ranks, stop = sys.argv[1:]
    if int(ranks) > 1:
        dist.init_process_group("gloo")
    work(Path(folder), int(ranks), int(stop))
