"""Checkpoints as others wrote them: their own config classes and file layouts, not ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.models import gpt2, qwen3

TOKENS = torch.randint(89, (2, 23), generator=torch.Generator().manual_seed(3))


def their_qwen3(**changed: object):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    settings = dict(
        vocab_size=89, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=6,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 5e4}, initializer_range=0.1,
    )  # fmt: skip
    return Qwen3ForCausalLM(Qwen3Config(**settings | changed)).eval()


def their_gpt2(**changed: object):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    settings = dict(vocab_size=89, n_embd=48, n_layer=3, n_head=4, n_positions=64, initializer_range=0.1)
    return GPT2LMHeadModel(GPT2Config(**settings | changed)).eval()


@pytest.mark.parametrize("changed", [{}, {"tie_word_embeddings": True}, {"num_key_value_heads": 6}])
def test_qwen3(tmp_path: Path, changed: dict) -> None:
    theirs = their_qwen3(**changed)
    theirs.save_pretrained(tmp_path)
    ours = directory.load(tmp_path)
    assert ours.config.rope_theta == 5e4 and ours.config.norm_eps == 1e-5
    with torch.no_grad():
        assert (ours.model(TOKENS).logits - theirs(TOKENS).logits).abs().max() <= 1e-5


def test_qwen3_with_the_published_spelling_of_its_config(tmp_path: Path) -> None:
    theirs = their_qwen3()
    theirs.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    del settings["rope_parameters"]
    settings |= {"rope_theta": 5e4, "rope_scaling": None, "torch_dtype": "float32"}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with torch.no_grad():
        assert (directory.load(tmp_path).model(TOKENS).logits - theirs(TOKENS).logits).abs().max() <= 1e-5


def test_gpt2_as_the_published_file_has_it(tmp_path: Path) -> None:
    """No `transformer.` prefix, and the causal mask stored as a tensor."""
    theirs = their_gpt2()
    theirs.save_pretrained(tmp_path)
    tensors = {k.removeprefix("transformer."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
    tensors |= {f"h.{n}.attn.bias": torch.ones(1, 1, 64, 64).tril() for n in range(3)}
    save_file(tensors, tmp_path / "model.safetensors")
    with torch.no_grad():
        assert (directory.load(tmp_path).model(TOKENS).logits - theirs(TOKENS).logits).abs().max() <= 1e-5


def test_attention_mask_means_what_documents_mean(tmp_path: Path) -> None:
    theirs = their_qwen3()
    theirs.save_pretrained(tmp_path)
    mask = torch.ones_like(TOKENS)
    mask[1, :7] = 0
    with torch.no_grad():
        want = theirs(TOKENS, attention_mask=mask).logits
        got = directory.load(tmp_path).model(TOKENS, documents=mask).logits
    assert (got - want)[mask == 1].abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_kept_both_ways(tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import AutoModelForCausalLM

    theirs = their_qwen3().to(dtype)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = directory.load(tmp_path / "theirs")
    assert {weight.dtype for weight in ours.model.parameters()} == {dtype}
    directory.save(tmp_path / "ours", ours.model, ours.family, ours.config)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert back.dtype == dtype
    assert all(torch.equal(left, right) for left, right in zip(theirs.parameters(), back.parameters(), strict=True))
    with torch.no_grad():
        want, got = theirs(TOKENS).logits.float(), ours.model(TOKENS).logits
    assert (want - got).abs().max() <= 8 * torch.finfo(dtype).eps * want.abs().max()


def test_published_sizes() -> None:
    from modelworks.nn.arithmetic import parameters

    millions = {
        "qwen3-0.6b": 596.05, "qwen3-1.7b": 1720.57, "qwen3-4b": 4022.47,
        "qwen3-8b": 8190.74, "qwen3-14b": 14768.31, "qwen3-32b": 32762.12,
    }  # fmt: skip
    for label, size in millions.items():
        assert round(parameters(qwen3.shape(qwen3.PRESETS[label])) / 1e6, 2) == size
    exact = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    for label, size in exact.items():
        assert parameters(gpt2.shape(gpt2.PRESETS[label])) == size


@pytest.mark.parametrize(
    "family, settings, key",
    [
        (qwen3, {"attention_bias": True}, "attention_bias"),
        (qwen3, {"use_sliding_window": True}, "use_sliding_window"),
        (qwen3, {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type"),
        (qwen3, {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e6}}, "rope_type"),
        (qwen3, {"hidden_act": "gelu"}, "hidden_act"),
        (gpt2, {"activation_function": "relu"}, "activation_function"),
        (gpt2, {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_settings_that_change_the_maths_are_refused(family, settings: dict, key: str) -> None:
    base = family.to_hf(next(iter(family.PRESETS.values())))
    with pytest.raises(UserError, match=key):
        family.from_hf(base | settings)


def test_more_positions_than_the_model_has() -> None:
    config = gpt2.PRESETS["gpt2-nano"].model_copy(update={"max_len": 8, "n_layers": 1})
    with pytest.raises(UserError, match="9 tokens and this model has 8 positions"):
        gpt2.build(config)(torch.zeros(1, 9, dtype=torch.long))
