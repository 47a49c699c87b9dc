"""Arithmetic against what torch counts and against published figures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from modelworks.hub import presets
from modelworks.models import gpt2, qwen3
from modelworks.nn import arithmetic


@pytest.mark.parametrize(
    "preset",
    ["qwen3-nano", "gpt2-nano", "llama-nano", "mistral-nano", "gpt3-nano", "bert-nano", "modernbert-nano", "bart-nano",
     "t5-nano"],
)  # fmt: skip
def test_forward_flops_are_what_torch_counts(preset: str) -> None:
    family, config = fresh(preset)
    shape = family.shape(config)
    with torch.device("meta"):
        model, tokens = family.build(config), torch.zeros(2, 64, dtype=torch.long)
        beside = {"inputs": tokens} if shape.cross_attention else {}
        with FlopCounterMode(display=False) as counter:
            model(tokens, **beside)
    assert counter.get_total_flops() == arithmetic.forward_flops(shape, 64, causal=False) * 2 * 64


def fresh(preset: str) -> tuple[Any, Any]:
    """A preset's family and its settings without dropout."""
    family, config = presets.preset(preset)
    settings = {"dropout": 0.0} if hasattr(config, "dropout") else {}
    return presets.family_module(family), config.model_copy(update=settings)


@pytest.mark.parametrize("window", [0, 1, 5, 40, 64, 100])
@pytest.mark.parametrize("causal", [True, False])
def test_what_is_seen_is_what_the_mask_shows(window: int, causal: bool) -> None:
    from modelworks.nn.layout import Layout
    from modelworks.nn.masks import Bidirectional, Causal

    shape = arithmetic.Shape(
        vocab_size=9, d_model=8, n_layers=2, n_heads=1, n_kv_heads=1, d_head=8, d_ff=8, feedforward_matrices=2,
        tied=True, vectors_per_layer=0, other_vectors=0, causal=causal,
        windows=(window, 0) if causal else (2 * (window // 2) + 1 if window else 0, 0),
    )  # fmt: skip
    counted = 0
    for width in (window, 0):
        tokens = torch.zeros(1, 64, dtype=torch.long)
        kind = Causal(width or None) if causal else Bidirectional(width // 2 if width else None)
        mask = kind.square(Layout(tokens, documents=torch.ones_like(tokens)), torch.float32)
        counted += int((mask == 0).sum())
    assert arithmetic.seen(shape, 64) * 64 == pytest.approx(counted)


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
    model = model.bfloat16() if bfloat16 else model
    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    held: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks:
        model(tokens, labels=tokens)
    return sum(tensor.untyped_storage().nbytes() for place, tensor in held.items() if place not in weights)


@pytest.mark.parametrize(
    "preset", ["llama-nano", "mistral-nano", "gpt3-nano", "bert-nano", "modernbert-nano", "mixtral-nano"]
)
def test_activations_of_other_families_are_what_autograd_keeps(preset: str) -> None:
    family, config = fresh(preset)
    held = held_for_the_backward_pass(family.build(config), torch.randint(4, 100, (2, 128)), True)
    # what a gate with GELU keeps besides (ModernBERT) is not counted: there is no kernel for it
    assert arithmetic.activations(family.shape(config), 128, 2, 2) == pytest.approx(held, rel=0.16)


def test_an_encoder_has_no_cache_and_a_window_rolls() -> None:
    family, config = fresh("mistral-nano")
    shape = family.shape(config)
    window = shape.windows[0]
    assert arithmetic.kv_bytes(shape, 4 * window, rolling=True) * 4 == arithmetic.kv_bytes(shape, 4 * window)
    family, config = fresh("bert-nano")
    assert arithmetic.kv_bytes(family.shape(config), 128) == 0


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("family, seq", [(qwen3, 256), (qwen3, 1100), (gpt2, 128)])
def test_activations_are_what_autograd_keeps(family, seq: int, bfloat16: bool) -> None:
    preset = next(iter(family.PRESETS.values()))
    config = preset.model_copy(update={"n_layers": 2, "vocab_size": 500, "max_len": 2048})
    held = held_for_the_backward_pass(family.build(config), torch.randint(500, (2, seq)), bfloat16)
    memory = arithmetic.training_memory(family.shape(config), seq, 2, width=2 if bfloat16 else 4)
    assert memory.activations == pytest.approx(held, rel=0.1)
    assert memory.optimiser == 2 * memory.gradients
    assert memory.weights == memory.gradients * (1.5 if bfloat16 else 1)
    assert memory.total == memory.weights + memory.gradients + memory.optimiser + memory.activations
