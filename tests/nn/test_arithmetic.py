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


def held_for_the_backward_pass(model: torch.nn.Module, tokens: torch.Tensor, bfloat16: bool) -> int:
    """Bytes of all storage, weights apart, that autograd keeps after a forward pass."""
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        model(tokens, labels=tokens)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in weights)


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("family, seq", [(qwen3, 256), (qwen3, 1100), (gpt2, 128)])
def test_activations_are_what_autograd_keeps(family, seq: int, bfloat16: bool) -> None:
    preset = next(iter(family.PRESETS.values()))
    config = preset.model_copy(update={"n_layers": 2, "vocab_size": 500, "max_len": 2048})
    held = held_for_the_backward_pass(family.build(config), torch.randint(500, (2, seq)), bfloat16)
    memory = arithmetic.training_memory(family.shape(config), seq, 2, width=2 if bfloat16 else 4)
    assert memory.activations == pytest.approx(held, rel=0.1)
    assert memory.optimiser == 2 * memory.weights == 2 * memory.gradients
    assert memory.total == memory.weights + memory.gradients + memory.optimiser + memory.activations
