"""Replays: any past step again, bit for bit, from a checkpoint or the start, through skips and halvings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.data.loader import Documents, Loader
from modelworks.data.tokens import TokenData
from modelworks.models import qwen3
from modelworks.objectives.causal_lm import CausalLM
from modelworks.train import checkpoint, replay, steps
from modelworks.train.loop import train
from modelworks.train.run import start
from modelworks.train.settings import Guarding, TrainSettings

from .test_checkpoint import Do
from .test_memory import Tight
from .test_spikes import Poisoned, Scarred
from .toys import build, silent


def settings(**changes: Any) -> TrainSettings:
    guarding = {name: changes.pop(name) for name in ("spikes", "keep_every") if name in changes}
    given = {"steps": 24, "accumulate": 2, "ema": 0.9, "evaluate_every": 5, "dtype": "float32", "save_every": 1e9}
    return TrainSettings(**given | changes, track=[], guard=Guarding(**guarding))


def made(folder: Path, make: Any, of: TrainSettings, saves: tuple[int, ...] = ()) -> None:
    run = start(*make(), of, folder, log=silent, plan=False)
    run.hooks.insert(-1, Do(lambda run: checkpoint.save(run) if run.step in saves else None))
    train(run)


@pytest.mark.parametrize("step", [1, 2, 8, 9, 17, 24])
def test_any_step_again(tmp_path: Path, step: int) -> None:
    """Dropout, accumulation, an average: loss, gradient norm and batches are those of the record, and all before it."""

    def make() -> tuple[Any, Any]:
        from .toys import Next

        return build(dropout=0.3), Next()

    of = settings(keep_every=8)
    made(tmp_path, make, of)
    assert [checkpoint.step_of(path) for path in checkpoint.found(tmp_path)] == [24, 16, 8]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    again = replay.replay(make, of, tmp_path, step, log=silent)
    assert again.same and again.differs is None
    assert again.started_from == (step - 1) // 8 * 8
    assert again.recorded and again.recorded["batches"] == again.batches
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before
    for wrong in (0, 25):
        with pytest.raises(UserError, match=rf"has no step {wrong}; name one from 1 to 24"):
            replay.replay(make, of, tmp_path, wrong, log=silent)


def test_a_difference_is_named(tmp_path: Path) -> None:
    """Other data from step 5 on: the replay says where it began to differ. With no record, it says nothing."""
    from .toys import Next

    of = settings()
    made(tmp_path, lambda: (build(), Next()), of)

    class Changed(Next):
        def _row(self, index: int) -> tuple[list[int], int]:
            return super()._row(index if index < 64 else index + 1)

    again = replay.replay(lambda: (build(), Changed()), of, tmp_path, 9, log=silent)
    assert again.same is False and again.differs == 5 and again.recorded["batches"] != again.batches
    (tmp_path / steps.FILE).unlink()
    assert replay.replay(lambda: (build(), Next()), of, tmp_path, 9, log=silent).same is None


@pytest.mark.parametrize("step", [39, 40, 41, 42, 64])
def test_through_a_spike(tmp_path: Path, step: int) -> None:
    of = settings(steps=64, spikes=8.0)
    made(tmp_path, lambda: (Scarred(), Poisoned({40})), of, saves=(20,))
    again = replay.replay(lambda: (Scarred(), Poisoned({40})), of, tmp_path, step, log=silent)
    assert again.same and again.differs is None and again.skipped == ("guilty" if step in (40, 41) else "")


def test_through_a_halving(tmp_path: Path) -> None:
    from .toys import Next

    of = settings()
    made(tmp_path, lambda: (build(dropout=0.0), Tight(4, MemoryError(), at=10)), of)
    assert replay.replay(lambda: (build(), Next()), of, tmp_path, 20, log=silent).same


def test_the_worst_predictions_are_named(tmp_path: Path) -> None:
    """A document that is unlike the others stands first, with its name; every loss is the model's own."""
    texts = [[3 + (i + k) % 5 for k in range(9)] + [0] for i in range(12)] + [[14, 9, 13, 2, 15, 8, 0]]
    data = TokenData.of(texts, [len(text) for text in texts])
    data.names = [f"doc-{n}" for n in range(12)] + ["odd"]
    shape = {"vocab_size": 16, "d_model": 16, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "d_head": 8, "d_ff": 32}

    def make() -> tuple[Any, Any]:
        torch.manual_seed(0)
        return qwen3.build(qwen3.Config(max_len=32, **shape)), CausalLM(Loader(Documents(data, 0, 20), 7, 20, 1), None)

    of = settings(steps=15, accumulate=1, evaluate_every=0, learning_rate=0.01)
    made(tmp_path, make, of)
    again = replay.replay(make, of, tmp_path, 15, log=silent, worst=1000)
    assert again.same and {token.document for token in again.tokens[:4]} == {"odd"}
    assert set(again.documents[0]) == set(data.names) == {token.document for token in again.tokens}
    worst = again.tokens[0]
    assert (
        worst.before[-1] == ([0, *texts[-1]])[len(worst.before) - 1] and worst.label == texts[-1][len(worst.before) - 1]
    )
    assert sum(token.loss for token in again.tokens) / len(again.tokens) == pytest.approx(again.loss, rel=1e-5)
    lines = [json.loads(line) for line in (tmp_path / steps.FILE).read_text().splitlines()]
    assert lines[0]["threads"] == torch.get_num_threads() and lines[0]["dtype"] == "float32"
