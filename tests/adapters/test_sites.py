"""Which layers a target means, in our words, the checkpoint's, and the usual short ones."""

from __future__ import annotations

from typing import Any

import pytest

from modelworks.adapters._sites import Host, choose, ours
from tests.contracts.kinds import build, cases


def meant(family: str, targets: Any) -> set[str]:
    case = next(case for case in cases("decoder") if case.name == family)
    chosen = choose(Host(build(case), family, case.config).sites(), targets)
    return {name.removeprefix("stack.blocks.") for name in ours(chosen)}


def both(*ends: str) -> set[str]:
    return {f"{layer}.{end}" for layer in (0, 1) for end in ends}


@pytest.mark.parametrize(
    ("family", "targets", "found"),
    [
        ("qwen3", ["q_proj", "v_proj"], both("attention.query", "attention.value")),
        ("qwen3", ["query", "attention.value"], both("attention.query", "attention.value")),
        ("qwen3", ["mlp.down_proj"], both("feedforward.down")),
        ("qwen3", ["model.layers.1.mlp.up_proj"], {"1.feedforward.up"}),
        ("qwen3", r".*layers\.0\.self_attn\.[qk]_proj", {"0.attention.query", "0.attention.key"}),
        ("qwen3", r"stack\.blocks\.1\..*\.(out|gate)", {"1.attention.out", "1.feedforward.gate"}),
        ("gpt2", ["c_attn"], both("attention.query", "attention.key", "attention.value")),
        ("gpt2", ["c_proj"], both("attention.out", "feedforward.down")),
        ("gpt2", ["q_proj", "down_proj"], both("attention.query", "feedforward.down")),  # what it does not say itself
        ("gpt2", ["value"], both("attention.value")),
        ("gpt2", "all-linear", both(*[f"attention.{n}" for n in ("query", "key", "value", "out")],
                                    "feedforward.up", "feedforward.down")),
    ],
)  # fmt: skip
def test_targets(family: str, targets: Any, found: set[str]) -> None:
    assert meant(family, targets) == found
