"""What a checkpoint costs a run: written in line or beside training, and how soon a signal is obeyed meanwhile.

    python bench/train/saving.py [--widths 256,1024,2048] [--repeats 5] [--folder DIR] [--publish]

A stack of eight square matrices with AdamW takes the same steps without a checkpoint, with one written in line and with
one written beside training (a copy in memory, then a thread), in turn; the cost is the difference in wall time. Then
SIGTERM comes right after a save beside training began: the run ends its step, waits for that save, saves once more.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.protocols import Batch
from modelworks.train import saving
from modelworks.train.hooks import Hook, Save
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import record

PROTOCOL = " ".join(" ".join(str(__doc__).split("\n\n")[2:]).split())
DEPTH = 8


class Rows:
    """Noise to be told from its negative: work for the processor and nothing else."""

    splittable = True

    def __init__(self, width: int, rows: int) -> None:
        self.data = torch.randn(rows, width)

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        while True:
            yield Batch({"rows": self.data}, len(self.data))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return {"loss": (model(batch.inputs["rows"]) + batch.inputs["rows"]).square().mean(-1).sum()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {}

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class At(Hook):
    """Makes step `step` the one that is saved."""

    def __init__(self, step: int) -> None:
        self.step = step

    def __call__(self, run: Run, logs: dict[str, float]) -> None:
        saver = next(hook.saver for hook in run.hooks if isinstance(hook, Save))
        saver.every = 0.0 if run.step == self.step else 1e9


def one(how: str, width: int, steps: int, folder: Path) -> dict[str, float]:
    """Wall seconds of the loop but its last save, the stall and the writer's work; or seconds from signal to end."""
    torch.manual_seed(0)
    saving.IN_LINE = 1e9 if how == "in line" else 0.0
    model = nn.Sequential(*(layer for _ in range(DEPTH) for layer in (nn.Linear(width, width), nn.Tanh())))
    settings = TrainSettings(steps=steps, optimizer="adamw", save_every=1e9, log_every=1000, dtype="float32", track=[])
    with tempfile.TemporaryDirectory(dir=folder) as place:
        run = start(model, Rows(width, 256), settings, Path(place), log=lambda text: None, plan=False)
        run.hooks.insert(-1, At(-1 if how == "none" else steps // 3))
        saver = next(hook.saver for hook in run.hooks if isinstance(hook, Save))
        spent: dict[str, float] = {}
        save = saver.save

        def watched(run: Run, last: bool = False, patience: float = 0.0) -> None:
            if last and how != "signal":
                saver.wait(run)
                spent["loop"] = time.monotonic() - began
                return
            save(run, last, patience)
            spent.setdefault("stall", saver.stall)
            if how == "signal" and not last:
                spent["sent"] = time.monotonic()
                os.kill(os.getpid(), signal.SIGTERM)
            run.closing.callback(lambda: spent.setdefault("work", saver.work))

        saver.save = watched  # type: ignore[method-assign]
        began = time.monotonic()
        try:
            train(run)
        except SystemExit:
            spent["delay"] = time.monotonic() - spent.pop("sent")
        spent["bytes"] = saving.size_of(run)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--widths", default="256,1024,2048", help="of the matrices: 2, 34 and 134 million weights in all"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=12.0, help="about how long a run takes")
    parser.add_argument(
        "--folder", type=Path, help="on the disk that is to be measured (default: the temporary folder)"
    )
    parser.add_argument(
        "--publish", action="store_true", help="keep the result and put its table on docs/benchmarks.md"
    )
    options = parser.parse_args()
    runs, rows = [], []
    for width in map(int, options.widths.split(",")):
        trial = one("none", width, 6, options.folder)
        steps = max(9, round(6 * options.seconds / trial["loop"]))
        for repeat in range(options.repeats):
            for how in ("none", "in line", "beside", "signal")[:: -1 if repeat % 2 else 1]:
                runs.append({"width": width, "how": how, "steps": steps} | one(how, width, steps, options.folder))
                print(runs[-1], flush=True)

        def middle(how: str, what: str, width: int = width) -> float:
            return statistics.median(run[what] for run in runs if (run["width"], run["how"]) == (width, how))

        size = middle("none", "bytes")
        cost = {how: middle(how, "loop") - middle("none", "loop") for how in ("in line", "beside")}
        cells = [f"{size / 1e6:,.0f} MB", *(f"{cost[how]:.2f} s" for how in cost)]
        cells += [f"{middle('beside', 'stall'):.2f} s", f"{size / 1e6:,.0f} MB", f"{middle('signal', 'delay'):.2f} s"]
        rows.append(cells)
    head = [
        "checkpoint",
        "cost in line",
        "cost beside training",
        "the loop stands still",
        "memory for it",
        "SIGTERM to end",
    ]
    table = record.table(head, rows)
    print("\n".join(table))
    if options.publish:
        path = record.write("saving", PROTOCOL, runs, {"rows": rows})
        facts = f"{record.machine_words(record.machine())}, commit {record.commit()}, {path.name}"
        record.publish_table("saving", [*table, "", facts + "."])


if __name__ == "__main__":
    main()
