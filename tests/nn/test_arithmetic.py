"""Arithmetic against what torch counts and against published figures."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modelworks.models import gpt2, qwen3
from modelworks.nn import arithmetic


@pytest.mark.parametrize("family", [qwen3, gpt2])
def test_forward_flops_are_what_torch_counts(family) -> None:
    config = next(iter(family.PRESETS.values())).model_copy(update={"dropout": 0.0})
    with torch.device("meta"):
        model, tokens = family.build(config), torch.zeros(2, 64, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            model(tokens)
    want = arithmetic.forward_flops(family.shape(config), 64, causal=False) * 2 * 64
    assert counter.get_total_flops() == want


def test_training_is_three_forward_passes() -> None:
    shape = qwen3.shape(qwen3.PRESETS["qwen3-nano"])
    assert arithmetic.training_flops(shape, 128) == 3 * arithmetic.forward_flops(shape, 128)


def test_one_cached_token_costs_what_the_last_of_many_costs() -> None:
    shape = qwen3.shape(qwen3.PRESETS["qwen3-nano"])
    total = sum(arithmetic.decode_flops(shape, t) for t in range(1, 65))
    assert total == pytest.approx(64 * arithmetic.forward_flops(shape, 64))


def test_kv_bytes_are_those_of_the_cache() -> None:
    config = qwen3.PRESETS["qwen3-nano"]
    cache = qwen3.build(config).new_cache(3, 50)
    held = sum(tensor.nbytes for tensor in cache.keys + cache.values)
    assert arithmetic.kv_bytes(qwen3.shape(config), 50, batch=3, width=4) == held


def test_published_flops_of_gpt3_follow_from_its_shape() -> None:
    """GPT-3: 3.14e23 FLOPs for 300B tokens (Brown et al. 2020, table D.1), which counts 6 a parameter."""
    shape = arithmetic.Shape(
        vocab_size=50257, d_model=12288, n_layers=96, n_heads=96, n_kv_heads=96, d_head=128, d_ff=4 * 12288,
        feedforward_matrices=2, tied=True, learned_positions=2048,
        vectors_per_layer=9 * 12288 + 4 * 12288, other_vectors=2 * 12288,
    )  # fmt: skip
    assert arithmetic.parameters(shape) == pytest.approx(174.6e9, rel=0.001)
    assert 6 * arithmetic.parameters(shape) * 300e9 == pytest.approx(3.14e23, rel=0.002)
    assert arithmetic.training_flops(shape, 2048) * 300e9 == pytest.approx(3.14e23, rel=0.03)


def test_training_memory_is_in_the_right_order() -> None:
    shape = qwen3.shape(qwen3.PRESETS["qwen3-micro"])
    memory = arithmetic.training_memory(shape, 256, 16)
    assert memory.weights == 4 * arithmetic.parameters(shape)
    assert memory.optimiser == 2 * memory.weights
    assert memory.total == memory.weights + memory.gradients + memory.optimiser + memory.activations
