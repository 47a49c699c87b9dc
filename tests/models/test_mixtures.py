"""Mixtures of experts and Gemma as their makers publish them: config.json, sizes in all and for a token."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from modelworks.base import files
from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.hub.presets import family_module, preset
from modelworks.models import gpt_oss, mixtral
from modelworks.models._alternating import layer_types
from modelworks.nn import arithmetic
from modelworks.quant import stored

MIXTRAL = {
    "architectures": ["MixtralForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "model_type": "mixtral", "num_attention_heads": 32, "num_experts_per_tok": 2,
    "num_hidden_layers": 32, "num_key_value_heads": 8, "num_local_experts": 8, "output_router_logits": False,
    "rms_norm_eps": 1e-05, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.02, "sliding_window": None,
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN3 = {
    "architectures": ["Qwen3MoeForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "bos_token_id": 151643, "decoder_sparse_step": 1, "eos_token_id": 151645, "head_dim": 128, "hidden_act": "silu",
    "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 6144, "max_position_embeddings": 40960,
    "max_window_layers": 48, "mlp_only_layers": [], "model_type": "qwen3_moe", "moe_intermediate_size": 768,
    "norm_topk_prob": True, "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False, "rms_norm_eps": 1e-06,
    "rope_scaling": None, "rope_theta": 1000000.0, "router_aux_loss_coef": 0.001, "sliding_window": None,
    "tie_word_embeddings": False, "use_cache": True, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GEMMA2 = {
    "architectures": ["Gemma2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": 50.0, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": 1,
    "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "initializer_range": 0.02,
    "intermediate_size": 9216, "max_position_embeddings": 8192, "model_type": "gemma2", "num_attention_heads": 8,
    "num_hidden_layers": 26, "num_key_value_heads": 4, "pad_token_id": 0, "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06, "rope_theta": 10000.0, "sliding_window": 4096, "use_cache": True, "vocab_size": 256000,
}  # fmt: skip
GEMMA3 = {
    "architectures": ["Gemma3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "attn_logit_softcapping": None, "bos_token_id": 2, "cache_implementation": "hybrid", "eos_token_id": [1, 106],
    "final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
    "initializer_range": 0.02, "intermediate_size": 6912, "max_position_embeddings": 32768,
    "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
    "pad_token_id": 0, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06, "rope_local_base_freq": 10000,
    "rope_scaling": None, "rope_theta": 1000000, "sliding_window": 512, "sliding_window_pattern": 6,
    "use_cache": True, "vocab_size": 262144,
}  # fmt: skip
GPT_OSS = {
    "architectures": ["GptOssForCausalLM"], "attention_bias": True, "attention_dropout": 0.0, "eos_token_id": 200002,
    "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
    "initializer_range": 0.02, "intermediate_size": 2880, "layer_types": layer_types(24, 2),
    "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
    "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": False,
    "pad_token_id": 199999, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "rope_type": "yarn", "truncate": False,
    },
    "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
    "tie_word_embeddings": False, "use_cache": True, "vocab_size": 201088,
}  # fmt: skip
MXFP4 = {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"}
PUBLISHED = {
    "mixtral-8x7b": MIXTRAL, "qwen3-30b-a3b": QWEN3, "gemma2-2b": GEMMA2, "gemma3-1b": GEMMA3, "gpt-oss-20b": GPT_OSS,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name: str) -> None:
    assert directory._config(dict(PUBLISHED[name]), "here") == preset(name)


BILLIONS = {
    # Mistral AI, "Mixtral of experts" and "Cheaper, better, faster, stronger" (2023, 2024)
    "mixtral-8x7b": (46.7, 12.9), "mixtral-8x22b": (141, 39),
    # model cards of Qwen3-30B-A3B and Qwen3-235B-A22B
    "qwen3-30b-a3b": (30.5, 3.3), "qwen3-235b-a22b": (235, 22),
    # gpt-oss model card (arXiv 2508.10925), table 1; of the two tables it counts the head's as active
    "gpt-oss-20b": (20.91, 3.61), "gpt-oss-120b": (116.83, 5.13),
}  # fmt: skip


@pytest.mark.parametrize("name", BILLIONS)
def test_sizes_are_the_published_ones(name: str) -> None:
    family, config = preset(name)
    shape = family_module(family).shape(config)
    active = arithmetic.active_parameters(shape)
    if family == "gpt_oss":
        idle = config.n_experts - config.n_active  # type: ignore[attr-defined]
        active -= shape.vocab_size * shape.d_model + shape.n_layers * idle * (2 * shape.d_ff + shape.d_model)
    for got, want in zip((arithmetic.parameters(shape), active), BILLIONS[name], strict=True):
        unit = 0.1 ** len(str(want).partition(".")[2])
        assert got / 1e9 == pytest.approx(want, abs=0.6 * unit)  # Qwen's 3.353 is printed as 3.3


def test_four_bit_experts_are_refused_in_a_sentence(tmp_path: Path) -> None:
    files.write_json(tmp_path / "config.json", GPT_OSS | {"quantization_config": MXFP4})
    with pytest.raises(UserError, match="quantised, a float one is needed"):
        directory.load(tmp_path)
    with pytest.raises(UserError, match=r"quantised by 'mxfp4'.*take the float model"):
        directory.load(tmp_path, unpack=stored.packing_from)


@pytest.mark.parametrize(
    ("settings", "change", "sentence"),
    [
        (GPT_OSS, {"layer_types": [*layer_types(23, 2), "sliding_attention"]}, "layer_types"),
        (GPT_OSS, {"attention_bias": False}, "attention_bias"),
        (GEMMA2, {"hidden_activation": "gelu"}, "hidden_activation"),
        (GEMMA2, {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        (GEMMA3, {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}}, "rope_type"),
        (QWEN3, {"use_sliding_window": True}, "use_sliding_window"),
        (QWEN3, {"mlp_only_layers": [48]}, "mlp_only_layers"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "9 of 8 experts"),
    ],
)
def test_what_would_change_the_maths_is_refused(
    settings: dict[str, Any], change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        family, config = directory._config(settings | change, "here")
        with torch.device("meta"):
            family_module(family).build(config)


def test_every_second_layer_may_be_dense() -> None:
    _, config = directory._config(QWEN3 | {"decoder_sparse_step": 2, "num_hidden_layers": 5}, "here")
    assert config.dense_layers == (0, 2, 4)  # type: ignore[attr-defined]


@pytest.mark.parametrize("family", [mixtral, gpt_oss])
def test_the_small_one_learns(family: Any) -> None:
    """A few steps on three sentences of numbers, the router's slopes among them."""
    torch.manual_seed(0)
    config = next(iter(family.PRESETS.values())).model_copy(update={"vocab_size": 50, "n_layers": 2})
    model = family.build(config)
    tokens = torch.randint(50, (3, 20), generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        out = model(tokens[:, :-1], labels=tokens[:, 1:])
        losses.append(out.losses.mean().item())
        (out.losses.mean() + out.balance).backward()
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]
