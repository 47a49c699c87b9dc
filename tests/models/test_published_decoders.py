"""Decoders as their makers publish them: the keys of their config.json, and what else lies in their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base.errors import UserError
from modelworks.hub import directory
from modelworks.hub.presets import preset

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009], "head_dim": 64, "hidden_act": "silu", "hidden_size": 2048,
    "initializer_range": 0.02, "intermediate_size": 8192, "max_position_embeddings": 131072, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 16, "num_key_value_heads": 8,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.45.0",
    "use_cache": True, "vocab_size": 128256,
}  # fmt: skip
MISTRAL = {
    "architectures": ["MistralForCausalLM"], "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu",
    "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 14336, "max_position_embeddings": 32768,
    "model_type": "mistral", "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "sliding_window": 4096, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "transformers_version": "4.34.0", "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN2 = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "hidden_act": "silu", "hidden_size": 896, "initializer_range": 0.02, "intermediate_size": 4864,
    "max_position_embeddings": 32768, "max_window_layers": 21, "model_type": "qwen2", "num_attention_heads": 14,
    "num_hidden_layers": 24, "num_key_value_heads": 2, "rms_norm_eps": 1e-06, "rope_theta": 1000000.0,
    "sliding_window": 32768, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
PYTHIA = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 512, "initializer_range": 0.02, "intermediate_size": 2048, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 8, "num_hidden_layers": 6,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip
PHI4 = {
    "architectures": ["Phi3ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 199999, "embd_pdrop": 0.0,
    "eos_token_id": 199999, "full_attn_mod": 1, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02,
    "intermediate_size": 8192, "interpolate_factor": 1, "lm_head_bias": False, "max_position_embeddings": 131072,
    "mlp_bias": False, "model_type": "phi3", "num_attention_heads": 24, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "original_max_position_embeddings": 4096, "pad_token_id": 199999,
    "partial_rotary_factor": 0.75, "resid_pdrop": 0.0, "rms_norm_eps": 1e-05,
    "rope_scaling": {"long_factor": [1] * 48, "short_factor": [1.0] * 48, "type": "longrope"}, "rope_theta": 10000.0,
    "sliding_window": 262144, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "use_cache": True,
    "vocab_size": 200064,
}  # fmt: skip
GPT1 = {
    "afn": "gelu", "architectures": ["OpenAIGPTLMHeadModel"], "attn_pdrop": 0.1, "embd_pdrop": 0.1,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "openai-gpt", "n_ctx": 512, "n_embd": 768,
    "n_head": 12, "n_layer": 12, "n_positions": 512, "n_special": 0, "predict_special_tokens": True,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "task_specific_params": {"text-generation": {}},
    "vocab_size": 40478,
}  # fmt: skip
GPT2 = {
    "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 50256,
    "embd_pdrop": 0.1, "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
    "resid_pdrop": 0.1, "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
    "summary_type": "cls_index", "summary_use_proj": True, "task_specific_params": {"text-generation": {}},
    "vocab_size": 50257,
}  # fmt: skip
PUBLISHED = {
    "llama3.2-1b": LLAMA, "mistral-7b-v0.1": MISTRAL, "qwen2.5-0.5b": QWEN2, "pythia-70m": PYTHIA, "phi4-mini": PHI4,
    "openai-gpt": GPT1, "gpt2": GPT2,
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_config_is_the_preset(name: str) -> None:
    assert directory._config(dict(PUBLISHED[name]), name) == preset(name)


def test_qwen_stretched_as_its_card_says() -> None:
    """The card's instruction: add this to config.json. It must count, whatever else the file says of positions."""
    rule = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    for more in ({}, {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}):
        _, config = directory._config(QWEN2 | {"rope_scaling": rule} | more, "here")
        assert config.rope_scaling.kind == "yarn" and config.rope_theta == 1e6  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["gpt_neox", "openai_gpt"])
def test_what_older_files_hold_besides(name: str, tmp_path: Path) -> None:
    """Masks and frequencies as tensors, names without their prefix, and the head as `transformers` 5 calls it."""
    from tests.contracts.kinds import Case, build
    from tests.contracts.tiny import gpt_neox, openai_gpt

    config = {"gpt_neox": gpt_neox.CONFIGS["untied"], "openai_gpt": openai_gpt.CONFIGS["tied"]}[name]
    case = Case(name, "older", config)
    model = build(case)
    directory.save(tmp_path, model, name, config)
    tensors: dict[str, Any] = load_file(tmp_path / "model.safetensors")
    if name == "gpt_neox":
        tensors["lm_head.weight"] = tensors.pop("embed_out.weight")
        for layer in range(2):
            at = f"gpt_neox.layers.{layer}.attention."
            tensors |= {f"{at}bias": torch.ones(1, 1, 64, 64).tril().bool(), f"{at}masked_bias": torch.tensor(-1e9)}
            tensors[f"{at}rotary_emb.inv_freq"] = torch.ones(2)
    else:
        tensors = {key.removeprefix("transformer."): tensor for key, tensor in tensors.items()}
        tensors |= {f"h.{layer}.attn.bias": torch.ones(1, 1, 64, 64).tril() for layer in range(2)}
        tensors["lm_head.weight"] = tensors["tokens_embed.weight"].clone()
    save_file(tensors, tmp_path / "model.safetensors")
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        assert torch.equal(directory.load(tmp_path).model(tokens).logits, model(tokens).logits)


@pytest.mark.parametrize(
    "name, changed, sentence",
    [
        ("llama3.2-1b", {"hidden_act": "gelu"}, "hidden_act"),
        ("mistral-7b-v0.1", {"attention_bias": True}, "attention_bias"),
        ("qwen2.5-0.5b", {"use_sliding_window": True, "sliding_window": None}, "gives no width"),
        ("qwen2.5-0.5b", {"layer_types": ["sliding_attention"] + 23 * ["full_attention"]}, "layer_types"),
        ("pythia-70m", {"hidden_act": "mish"}, "hidden_act"),
        ("pythia-70m", {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_type"),
        ("phi4-mini", {"lm_head_bias": True}, "lm_head_bias"),
        ("openai-gpt", {"afn": "relu"}, "afn"),
        ("openai-gpt", {"n_special": 2}, "n_special"),
    ],
)
def test_settings_that_change_the_maths_are_refused(name: str, changed: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        directory._config(json.loads(json.dumps(PUBLISHED[name] | changed)), name)


def test_windows_of_qwen2_begin_above_the_full_layers() -> None:
    on = {"use_sliding_window": True, "sliding_window": 512}
    _, config = directory._config(QWEN2 | on, "here")
    assert (config.window, config.full_layers) == (512, 21)  # type: ignore[attr-defined]
    kinds = 3 * ["full_attention"] + 21 * ["sliding_attention"]
    _, config = directory._config(QWEN2 | on | {"layer_types": kinds}, "here")
    assert (config.window, config.full_layers) == (512, 3)  # type: ignore[attr-defined]
    _, config = directory._config(QWEN2 | on | {"max_window_layers": 28}, "here")
    assert (config.window, config.full_layers) == (None, 0)  # type: ignore[attr-defined]
