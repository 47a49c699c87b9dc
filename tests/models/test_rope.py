"""Rules that stretch rotary positions, against those of `transformers` worked out in float64."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from modelworks.base.errors import UserError
from modelworks.models import _rope, llama, phi3, qwen2
from modelworks.models._rope import Linear, Llama3, Yarn
from modelworks.models.phi3 import LongRope, LongRotary
from modelworks.nn.cache import KVCache
from modelworks.nn.layout import Layout
from modelworks.nn.position import Rotary

FAR = torch.tensor([0, 1, 4095, 8191, 32_768, 65_537, 131_071])
SHORT = tuple(1 + 0.01 * pair for pair in range(48))
LONG = tuple(1 + 0.03 * pair**2 for pair in range(48))
RULES: dict[str, tuple[Any, int, float]] = {
    "llama3.1": (Llama3(factor=8.0), 128, 5e5),
    "llama3.2": (Llama3(factor=32.0), 64, 5e5),
    "linear": (Linear(factor=4.0), 128, 1e4),
    "qwen2.5": (Yarn(factor=4.0, original_max_len=32_768), 128, 1e6),
    "gpt-oss": (Yarn(factor=32.0, original_max_len=4096, truncate=False), 64, 1.5e5),
    "yarn-by-hand": (Yarn(factor=2.0, original_max_len=64, fast=16, slow=2, attention_factor=1.5), 32, 1e4),
}


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Their rules with every float32 in them made a float64: (settings, head width) -> frequencies, scale."""
    from transformers import LlamaConfig, modeling_rope_utils

    class Double:
        float = float32 = torch.float64

        def __getattr__(self, name: str) -> Any:
            return getattr(torch, name)

    monkeypatch.setattr(modeling_rope_utils, "torch", Double())
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)

    def rule(settings: dict[str, Any], width: int, seq: int | None = None, max_len: int = 131_072) -> Any:
        config = LlamaConfig(
            head_dim=width, hidden_size=2 * width, num_attention_heads=2, max_position_embeddings=max_len,
            rope_parameters=settings,
        )  # fmt: skip
        return modeling_rope_utils.ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, seq_len=seq)

    return rule


def agree(rotary: Rotary, inverse: torch.Tensor, scale: float) -> None:
    """The same frequencies in float64."""
    assert inverse.dtype == rotary.inverse.dtype == torch.float64
    assert ((rotary.inverse - inverse) / inverse).abs().max() <= 1e-14
    assert rotary.scale == pytest.approx(scale, abs=1e-15)


@pytest.mark.parametrize("name", RULES)
def test_rules_are_theirs(name: str, theirs: Any) -> None:
    scaling, width, theta = RULES[name]
    inverse, scale = theirs(_rope.to_hf(theta, scaling)["rope_parameters"], width)
    agree(_rope.rotary(width, theta, scaling), inverse, scale)


@pytest.mark.parametrize("name", ["llama3.2", "gpt-oss"])
def test_128k_positions_are_right_to_a_rounding_of_float32(name: str, theirs: Any) -> None:
    scaling, width, theta = RULES[name]
    inverse, scale = theirs(_rope.to_hf(theta, scaling)["rope_parameters"], width)
    angle = torch.outer(FAR.double(), inverse)
    table = _rope.rotary(width, theta, scaling).table(131_072, torch.device("cpu"))
    for got, want in ((table[0, FAR, : width // 2], angle.cos()), (table[1, FAR, width // 2 :], angle.sin())):
        assert (got.double() - want * scale).abs().max() <= 2.0**-24 * scale + 1e-9


@pytest.mark.parametrize("factor", [None, 1.25])
def test_longrope_is_theirs(factor: float | None, theirs: Any) -> None:
    scaling = LongRope(short=SHORT, long=LONG, original_max_len=4096, attention_factor=factor)
    config = phi3.PRESETS["phi3-mini-128k"].model_copy(update={"rope_scaling": scaling})
    position = phi3._position(config)
    settings = phi3.to_hf(config)["rope_parameters"] | {"original_max_position_embeddings": 4096}
    agree(position.short, *theirs(settings, 96, seq=4096))
    agree(position.long, *theirs(settings, 96, seq=4097))


def cache(room: int, *reach: int) -> KVCache:
    made = KVCache(1, 2, 1, room, 2)
    made.reach = list(reach) or None
    return made


def test_the_length_of_a_text_chooses_its_factors() -> None:
    """One long document among short ones, padding, explicit positions and the room of a cache."""
    slow, fast = Rotary(torch.tensor([0.5], dtype=torch.float64)), Rotary(torch.tensor([1.0], dtype=torch.float64))
    both = LongRotary(fast, slow, original=3)

    def chosen(**given: Any) -> Any:
        rows = next(iter(given.values())) if "documents" in given else torch.zeros(2, given.pop("seq", 5))
        return both._longer(Layout(rows, **given))

    assert chosen(seq=3) is False and chosen(seq=4) is True
    documents = torch.tensor([[1, 1, 2, 2, 2, 2], [3, 3, 3, 0, 0, 0]])
    assert chosen(documents=documents).tolist() == [[False] * 2 + [True] * 4, [False] * 6]
    assert chosen(documents=documents[:, :3]) is False
    assert chosen(seq=2, cache=cache(3)) is False and chosen(seq=2, cache=cache(4)) is True
    assert chosen(seq=2, cache=cache(9, 2, 3)) is False and chosen(seq=2, cache=cache(9, 4, 5)) is True
    mixed = cache(9, 3, 4)
    assert chosen(seq=2, cache=mixed).tolist() == [[False], [True]]
    mixed.rows(torch.tensor([1, 1]))
    assert chosen(seq=2, cache=mixed) is True
    x = torch.randn(2, 6, 1, 2, generator=torch.Generator().manual_seed(0))
    layout = Layout(documents, documents=documents)
    turned = both(x, layout)
    assert torch.equal(turned[0, 2:], slow(x, layout)[0, 2:]) and not torch.equal(slow(x, layout), fast(x, layout))
    assert torch.equal(turned[0, :2], fast(x, layout)[0, :2]) and torch.equal(turned[1], fast(x, layout)[1])


@pytest.mark.parametrize(
    "rule, key",
    [
        ({"rope_type": "dynamic", "factor": 2.0}, "rope_type"),
        ({"type": "mrope", "mrope_section": [16, 24, 24]}, "rope_type"),
        ({"rope_type": "linear"}, "factor"),
        ({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7}, "mscale"),
        ({"rope_type": "llama3", "factor": 8.0, "ntk_alpha": 3.0}, "ntk_alpha"),
        ({"rope_type": "default", "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ],
)
def test_rules_that_are_not_ours_are_refused(rule: dict[str, Any], key: str) -> None:
    for family, name in ((llama, "llama-nano"), (qwen2, "qwen2-nano")):
        settings = family.to_hf(family.PRESETS[name])
        del settings["rope_parameters"]
        with pytest.raises(UserError, match=key):
            family.from_hf(settings | {"rope_scaling": rule})


def test_the_trained_length_stands_where_they_look_for_it() -> None:
    settings = llama.to_hf(llama.PRESETS["llama-nano"]) | {"rope_scaling": {"type": "yarn", "factor": 2.0}}
    assert llama.from_hf(settings).rope_scaling.original_max_len == 4096  # max_position_embeddings, as nothing is said
    inside = {"rope_scaling": {"type": "yarn", "factor": 2.0, "original_max_position_embeddings": 2048}}
    assert llama.from_hf(settings | inside).rope_scaling.original_max_len == 2048
    outside = llama.from_hf(settings | inside | {"original_max_position_embeddings": 1024})
    assert outside.rope_scaling.original_max_len == 1024


@pytest.mark.parametrize(
    "changed, key",
    [
        ({"short_factor": None}, "short_factor"),
        ({"short_mscale": 1.1}, "short_mscale"),
        ({"factor": 16.0}, "factor"),
        ({"rope_type": "linear"}, "rope_type"),
    ],
)
def test_longrope_that_is_not_ours_is_refused(changed: dict[str, Any], key: str) -> None:
    settings = phi3.to_hf(phi3.PRESETS["phi3-mini-128k"])
    settings["rope_scaling"] = settings["rope_scaling"] | changed
    with pytest.raises(UserError, match=key):
        phi3.from_hf(settings)


def test_longrope_needs_a_factor_for_each_pair() -> None:
    config = phi3.PRESETS["phi3-nano"].model_copy(update={"rope_scaling": LongRope(short=SHORT, long=LONG)})
    with pytest.raises(UserError, match="48 short factors are given and the heads have 16 pairs"):
        phi3.build(config)
