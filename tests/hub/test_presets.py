"""Presets by name and by settings."""

from __future__ import annotations

import pytest

from modelworks.base import folders
from modelworks.base.errors import UserError
from modelworks.hub import presets


def test_every_preset_names_its_family() -> None:
    known = presets.presets()
    assert known["qwen3-nano"] == "qwen3" and known["gpt2-xl"] == "gpt2"
    assert known["transformer-base"] == "marian" and known["opus-mt-en-zh"] == "marian"


def test_no_two_families_have_a_preset_of_the_same_name() -> None:
    names = [name for family in folders.names(presets.MODELS) for name in presets.family_module(family).PRESETS]
    assert len(names) == len(set(names))


def test_a_near_name_is_suggested() -> None:
    with pytest.raises(UserError, match="did you mean 'qwen3-nano'"):
        presets.preset("qwen3-nanno")


def test_settings_override_a_preset_and_fixed_wins() -> None:
    family, config = presets.resolve({"preset": "qwen3-nano", "n_layers": 2, "vocab_size": 7}, vocab_size="1k")
    assert (family, config.n_layers, config.vocab_size, config.d_model) == ("qwen3", 2, 1000, 128)


def test_a_family_needs_its_whole_shape() -> None:
    with pytest.raises(UserError, match="'d_model' is needed"):
        presets.resolve({"family": "gpt2"})
    with pytest.raises(UserError, match="did you mean 'n_layers'"):
        presets.resolve({"preset": "gpt2-nano", "n_layer": 2})
    with pytest.raises(UserError, match="either a preset or a family"):
        presets.resolve({"n_layers": 2})


def test_build_gives_a_fresh_model() -> None:
    model, family, config = presets.build("gpt2-nano", vocab_size=65)
    assert family == "gpt2" and model.stem.tokens.weight.shape == (65, config.d_model)
