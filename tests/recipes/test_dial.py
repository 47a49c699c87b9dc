"""One dial: shapes hold what was asked for, what is set wins, what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.hub import presets
from modelworks.recipes import schema


def stage(**given: Any) -> Any:
    settings = {"objective": "causal_lm", "data": "corpus", "tokenizer": "words", **given}
    return schema.stage("train", "train", settings, "here").settings


@pytest.mark.parametrize("size", [300_000, 800_000, 1_500_000, 3_000_000, 8_000_000, 15_000_000, 30_000_000])
def test_the_blocks_hold_what_was_asked_for(size: int) -> None:
    """Counted on the model itself, which the dial never sees; the tables are the tokenizer's affair."""
    config = stage(size=size)
    with torch.device("meta"):
        model = presets.build(config.own.model, vocab_size=500).model
    held = sum(p.numel() for name, p in model.named_parameters() if name.startswith("stack.blocks"))
    assert 0.8 * size < held < 1.25 * size
    assert config.train.tokens == 20 * size and config.train.steps == 0


def test_more_is_more() -> None:
    """Width, depth, rows and tokens never fall as the dial goes up."""
    found = [stage(size=100_000 * 2**n) for n in range(10)]
    for part in ("d_model", "n_layers"):
        values = [config.own.model[part] for config in found]
        assert values == sorted(values), part
    for part in ("rows", "tokens", "warmup_steps"):
        values = [getattr(config.train, part) for config in found]
        assert values == sorted(values), part


def test_what_is_set_wins() -> None:
    config = stage(size="3M", learning_rate=0.5, rows=3, max_len=64, model={"n_layers": 9}, budget={"steps": 7})
    assert (config.train.learning_rate, config.train.rows, config.train.steps, config.train.tokens) == (0.5, 3, 7, 0)
    assert config.own.model["n_layers"] == 9 and config.own.model["d_model"] == stage(size="3M").own.model["d_model"]
    assert stage(size="3M", tokens="1M").train.rows < stage(size="3M").train.rows  # a short run takes smaller steps
    short = stage(size="300k", steps=260, max_len=64).train
    assert 20 <= short.rows <= 28 and short.steps == 260 and short.tokens == 0  # about what char-lm was tuned to
    narrow, wide = (stage(size=size, tokens="2M").train for size in ("300k", "30M"))
    assert narrow == wide  # for the same tokens the same training: rates fit every width


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"size": "3M", "model": "qwen3-nano"}, "no model beside it"),
        ({"size": "3M", "model": {"preset": "qwen3-nano"}}, "no model beside it"),
        ({"size": "3G"}, "100k to 100M"),
        ({"size": "large"}, "100k to 100M"),
        ({}, "model"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        stage(**given)
