"""A grid of settings for the recipe char-lm, through our own training loop in one process; one JSON line a run.

    python bench/train/sweep.py --grid '{"learning_rate": [0.005, 0.01], "model.d_ff": [320, 512]}' --steps 200

The grid's keys are settings of training, of the model (`model.<name>`), constants of the optimiser
(`constant.MOMENTUM`) or `head_rate`, how many times AdamW's rate the head learns at; what it does not name is as in
the recipe. Every combination is run with every seed. The text is cut as the final benchmark cuts it; of its training
part the last tenth is held out here, so that the benchmark's own held-out text plays no part in any choice. One
thread; the price of a step is processor time, and given as a share of what a step of the plain GPT
(`char_baseline.py`) takes, measured right after it.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import char_baseline
import char_lm

WINDOWS = 640  # held-out windows that a run is scored on: 41,000 characters, the same for all
RECIPE = Path(__file__).resolve().parents[2] / "src/modelworks/recipes/library/char-lm.yaml"


def recipe() -> tuple[dict[str, Any], dict[str, Any], int]:
    """The recipe's settings of training and of the model, and its row length."""
    from modelworks.train.settings import TrainSettings

    stage = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))["stages"]["model"]
    flat = stage | stage.get("budget", {})
    training = {key: value for key, value in flat.items() if key in TrainSettings.model_fields}
    return training | {"evaluate_every": 0, "track": []}, dict(stage["model"]), int(stage["max_len"])


def split(text: str) -> tuple[list[int], list[int], int]:
    """Ids to learn from, ids to tune on (both from the training part), words. The id 0 ends a document."""
    words = {character: number for number, character in enumerate(sorted(set(text)), start=1)}
    ids = [words[character] for character in text[: len(text) * 9 // 10]]
    cut = len(ids) * 9 // 10
    return ids[:cut], ids[cut:], len(words) + 1


def plain_step(words: int) -> Any:
    """One step of the plain GPT, to call."""
    model = char_baseline.CharGPT(words)
    optimizer = torch.optim.AdamW(model.parameters(), lr=char_baseline.PEAK)

    def step() -> None:
        rows = torch.randint(words, (char_baseline.BATCH, char_baseline.BLOCK + 1))
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def milliseconds(step: Any, times: int) -> list[float]:
    """Processor milliseconds of each of some calls."""
    taken = []
    for _ in range(times):
        start = time.process_time()
        step()
        taken.append((time.process_time() - start) * 1e3)
    return taken


class Sweep:
    """The data and what stays the same from run to run."""

    def __init__(self, text: str, windows: int = WINDOWS) -> None:
        self.learn, tune, self.words = split(text)
        spread = torch.linspace(0, len(tune) - char_lm.WINDOW - 1, windows).long().tolist()
        self.rows = torch.stack([torch.tensor(tune[at : at + char_lm.WINDOW + 1]) for at in spread])
        self.plain = plain_step(self.words)
        self.constants: dict[str, Any] = {}

    @torch.no_grad()
    def score(self, model: torch.nn.Module) -> float:
        """Mean loss on the held-out windows."""
        model.eval()
        losses = [
            model(rows[:, :-1], documents=torch.ones_like(rows[:, :-1]), labels=rows[:, 1:]).losses.sum()
            for rows in self.rows.split(128)
        ]
        return float(torch.stack(losses).sum()) / self.rows[:, 1:].numel()

    def run(self, changes: dict[str, Any], seed: int) -> dict[str, Any]:
        """Train once with these changes to the recipe."""
        from modelworks.base import seeds
        from modelworks.data.loader import Documents, Loader
        from modelworks.data.tokens import TokenData
        from modelworks.hub import presets
        from modelworks.objectives.causal_lm import CausalLM
        from modelworks.train import loop, optim
        from modelworks.train.run import start
        from modelworks.train.settings import TrainSettings

        training, shape, max_len = recipe()
        for name, value in self.constants.items():
            setattr(optim, name, value)
        rate = changes.get("head_rate")
        for key, value in changes.items():
            if key == "head_rate":
                continue
            kind, _, name = key.rpartition(".")
            if kind == "constant":
                self.constants.setdefault(name, getattr(optim, name))
                setattr(optim, name, value)
            else:
                (shape if kind == "model" else training)[name] = value
        settings = TrainSettings(**training | {"seed": seed})
        seeds.seed_everything(seeds.derive(seed, "weights") % 2**32)
        model = presets.build(shape, vocab_size=self.words).model
        if rate is not None:
            model.head.projection.weight.rate = rate
        data = TokenData.of([[*self.learn, 0]], [len(self.learn)])
        objective = CausalLM(Loader(Documents(data, 0, max_len), settings.rows, max_len, seed), None)
        with tempfile.TemporaryDirectory(prefix="sweep-") as folder:
            run = start(model, objective, settings, Path(folder), log=lambda text: None, plan=False)
            began = time.process_time()
            metrics = loop.train(run)
            seconds = time.process_time() - began
        plain = statistics.median(milliseconds(self.plain, 9))
        price = seconds * 1e3 / metrics["steps"]
        return {
            **changes, "seed": seed, "loss": round(self.score(model), 4), "steps": int(metrics["steps"]),
            "ms": round(price, 1), "plain_ms": round(plain, 1), "plain_steps": round(price * metrics["steps"] / plain),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a text file, .gz or not (default: tiny Shakespeare)")
    parser.add_argument("--grid", required=True, help="JSON: name -> list of values; or a list of such objects")
    parser.add_argument("--steps", type=int, help="optimiser steps (default: the recipe's)")
    parser.add_argument("--seeds", default="11")
    parser.add_argument("--out", type=Path, help="append the lines to this file as well")
    options = parser.parse_args()
    torch.set_num_threads(1)
    sweep = Sweep(char_lm.text_of(options.data))
    grids = json.loads(options.grid)
    for grid in grids if isinstance(grids, list) else [grids]:
        for values in itertools.product(*(value if isinstance(value, list) else [value] for value in grid.values())):
            changes = dict(zip(grid, values, strict=True)) | ({"steps": options.steps} if options.steps else {})
            for seed in (int(part) for part in options.seeds.split(",")):
                line = json.dumps(sweep.run(changes, seed))
                print(line, flush=True)
                if options.out:
                    with open(options.out, "a", encoding="utf-8") as file:
                        file.write(line + "\n")


if __name__ == "__main__":
    main()
