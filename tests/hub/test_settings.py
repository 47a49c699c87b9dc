"""Settings that nobody read are refused by name; those that change no number are not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from modelworks.base.errors import UserError
from modelworks.hub import directory, presets
from modelworks.hub.settings import HARMLESS, Noted
from modelworks.models import qwen3

QWEN = {"architectures": ["Qwen3ForCausalLM"]} | qwen3.to_hf(qwen3.PRESETS["qwen3-nano"])


def test_notes_what_was_asked_for() -> None:
    noted = Noted(
        {"a": 1, "b": 2, "c": 3, "none": None, "empty": {}, "use_cache": True, "sub_config": {"x": 1, "y": 2}}
    )
    assert noted.get("a") == 1 and noted["b"] == 2 and noted.get("missing", 7) == 7 and "c" in noted
    assert noted.unread() == ["c", "sub_config"]
    assert noted["sub_config"]["x"] == 1 and noted["sub_config"] == {"x": 1, "y": 2}
    assert noted.unread() == ["c", "sub_config.y"]


@pytest.mark.parametrize(
    "more",
    [
        {"partial_rotary_factor": 0.5},
        {"use_qk_norm": False},  # a switch that is off may be the difference
        {"attn_logit_softcapping": 50.0},
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"alibi": True},
        {"layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_a_setting_that_we_do_not_know(more: dict[str, Any]) -> None:
    (key,) = more
    with pytest.raises(UserError, match=rf"config.json: '{key}' is "):
        directory._config(QWEN | more, "here")


def test_the_sentence_names_the_remedy() -> None:
    with pytest.raises(
        UserError, match=r"'alibi' is True, a setting that our qwen3 does not know; it may change the maths"
    ):
        directory._config(QWEN | {"alibi": True}, "here")


def test_what_published_configs_carry_besides() -> None:
    """Keys of Qwen/Qwen3-0.6B's own file, of fine-tunes by other trainers, and of common settings of `transformers`."""
    more = {
        "bos_token_id": 151643, "eos_token_id": 151645, "max_window_layers": 28, "sliding_window": None,
        "rope_scaling": None, "torch_dtype": "bfloat16", "transformers_version": "4.51.0", "use_cache": False,
        "use_sliding_window": False, "_name_or_path": "x/y", "unsloth_version": None, "pad_token_id": 1,
        "attn_implementation": None, "return_dict": True, "chunk_size_feed_forward": 0, "id2label": {"0": "no"},
        "problem_type": "regression", "temperature": 0.7, "auto_map": {"AutoModel": "evil--modeling.Evil"},
    }  # fmt: skip
    assert directory._config(QWEN | more, "here")[1] == qwen3.PRESETS["qwen3-nano"]


def test_no_architecture_of_ours_is_harmless_to_change() -> None:
    """The pattern of harmless names swallows none of the keys that say what a model is."""
    shape = (
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim rope_theta".split()
    )
    shape += (
        "intermediate_size hidden_act rms_norm_eps tie_word_embeddings sliding_window layer_types is_decoder".split()
    )
    shape += (
        "position_embedding_type scale_attn_weights attn_logit_softcapping num_experts_per_tok norm_topk_prob".split()
    )
    shape += "quantization_config normalize_before scale_embedding pooler_act cross_attention_hidden_size".split()
    assert not [key for key in shape if HARMLESS.fullmatch(key)]


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"architectures": ["Qwen2_3ForCausalLM"]}, r"Qwen2_3ForCausalLM is not supported \(did you mean 'Qwen"),
        (
            {"architectures": ["MambaForCausalLM"]},
            r"MambaForCausalLM is not supported \((did you mean '\w+'|families: .*qwen3.*)",
        ),
        ({"architectures": ["ZzzzQ"]}, r"ZzzzQ is not supported \((families|known): .*(gpt2|GPT2).*(qwen3|Qwen3).*\)"),
        (
            {"architectures": ["ChatGLMModel"], "auto_map": {"AutoModel": "modeling_chatglm.ChatGLM"}},
            r"ChatGLMModel \(it is code of the repository's own, which is never run\) is not supported",
        ),
        ({"model_type": "xlnet"}, "the architecture xlnet is not supported"),
        ({}, "the architecture None is not supported"),
    ],
)
def test_an_architecture_that_we_do_not_have(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        directory._config(settings, "here")


def test_no_family_imports_transformers() -> None:
    """In a process of its own: every module of models/, hub/ and nn/, and a model built."""
    code = """
import importlib, pkgutil, sys
for package in ("modelworks.models", "modelworks.hub", "modelworks.nn"):
    found = importlib.import_module(package)
    for module in pkgutil.iter_modules(found.__path__):
        importlib.import_module(f"{package}.{module.name}")
from modelworks.hub import presets
presets.build("qwen3-nano")
print(",".join(sorted({name.split(".")[0] for name in sys.modules} & {"transformers", "peft", "accelerate", "datasets"})))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.strip() == "", done.stdout + done.stderr


def test_remote_code_has_no_switch() -> None:
    """The words stand nowhere in the package, so nothing can turn it on."""
    root = Path(directory.__file__).parents[1]
    assert not [path for path in root.rglob("*.py") if "trust_remote_code" in path.read_text()]


def test_the_refusal_comes_before_the_weights_are_read(tmp_path: Path) -> None:
    model, family, config = presets.build("qwen3-nano", vocab_size=32)
    directory.save(tmp_path, model, family, config)
    settings = json.loads((tmp_path / "config.json").read_text()) | {"alibi": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="'alibi'"):
        directory.load(tmp_path)
