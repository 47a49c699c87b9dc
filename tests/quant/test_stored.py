"""Quantised models on disk: what was saved comes back bit for bit, others can read it, and what is wrong has a name."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from modelworks.base.errors import DamagedError, UserError
from modelworks.hub import directory
from modelworks.models import qwen3
from modelworks.nn.transformer import Transformer
from modelworks.quant.linear import QuantisedLinear
from modelworks.quant.stored import packing_from, packing_of
from modelworks.quant.walk import METHODS, quantise

from ..contracts import kinds
from . import tiny
from .test_layers import NF4

DOWN = "model.layers.1.mlp.down_proj"


def save(folder: Path, model: Transformer, method: str, **settings: Any) -> Transformer:
    """A quantised copy of `model`, saved in `folder`."""
    made = copy.deepcopy(model)
    batches = list(tiny.rows(8, seed=5)[:, :-1].split(4))
    outcome = quantise(made, method, **{"group": 32, "batches": batches, **settings})
    config = tiny.CONFIG.model_copy(update={"tie_word_embeddings": not settings.get("head")})
    packing = packing_of(made, qwen3.hf_names(config), outcome.left, qwen3.hf_tied(config))
    directory.save(folder, made, "qwen3", config, packing=packing)
    return made


def load(folder: Path) -> Any:
    return directory.load(folder, unpack=packing_from).model


def same(one: nn.Module, other: nn.Module) -> None:
    before, after = one.state_dict(), other.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype and torch.equal(tensor, after[name]), name
    for name, part in one.named_modules():
        if isinstance(part, QuantisedLinear):
            again = other.get_submodule(name)
            assert type(again) is type(part) and again.group == part.group, name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_saved_is_loaded_bit_for_bit(learned: Transformer, method: str, dtype: Any, tmp_path: Path) -> None:
    made = save(tmp_path, learned, method, dtype=dtype)
    back = load(tmp_path).requires_grad_(False)
    same(made, back)
    tokens = tiny.rows(2, seed=3)[:, :-1]
    assert torch.equal(made(tokens).logits, back(tokens).logits)
    save_again = tmp_path / "again"
    settings = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    directory.save(save_again, back, "qwen3", tiny.CONFIG, packing=packing_from(settings))
    assert (save_again / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()


def test_a_quantised_head_needs_no_tie(learned: Transformer, tmp_path: Path) -> None:
    made = save(tmp_path, learned, "int4", head=True)
    back = load(tmp_path)
    same(made, back)
    assert isinstance(back.head.projection, QuantisedLinear)
    assert not json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]


def float_matrix(tensors: dict[str, Tensor], base: str, method: str) -> np.ndarray:
    """A layer's matrix in float64 as the specifications of the two formats define it, from the file's tensors."""
    if method == "nf4":
        note = json.loads(bytes(tensors[f"{base}.weight.quant_state.bitsandbytes__nf4"].tolist()))
        packed = tensors[f"{base}.weight"].numpy()[:, 0]
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1, note["blocksize"])
        values = tensors[f"{base}.weight.quant_map"].double().numpy()[codes]
        return (values * tensors[f"{base}.weight.absmax"].double().numpy()[:, None]).reshape(note["shape"])
    scales = tensors[f"{base}.weight_scale"].double().numpy()
    if method == "int8-dynamic":
        return tensors[f"{base}.weight"].double().numpy() * scales
    bits = 8 if method == "int8" else 4
    rows, inputs = tensors[f"{base}.weight_shape"].tolist()
    words = tensors[f"{base}.weight_packed"].numpy().astype(np.int64) & 0xFFFFFFFF
    values = np.stack([(words >> (bits * place)) & (2**bits - 1) for place in range(32 // bits)], 2)
    values = values.reshape(rows, -1)[:, :inputs] - 2.0 ** (bits - 1)
    return values * np.repeat(scales, inputs // scales.shape[1], 1)


@pytest.mark.parametrize("method", ["int8", "int8-dynamic", "int4", "nf4"])
def test_the_file_means_the_same_matrix_by_its_formats_specification(
    learned: Transformer, method: str, tmp_path: Path
) -> None:
    made = save(tmp_path, learned, method)
    found = float_matrix(load_file(tmp_path / "model.safetensors"), DOWN, method)
    want = made.stack.blocks[1].feedforward.down.dequantised(torch.float64).numpy()
    np.testing.assert_allclose(found, want, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("method", ["int8", "int4-gptq"])
def test_transformers_opens_it(learned: Transformer, method: str, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    from transformers import AutoModelForCausalLM

    made = save(tmp_path, learned, method)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = tiny.rows(2, seed=3)[:, :-1]
    with torch.no_grad():
        assert (theirs(tokens).logits - made(tokens).logits).abs().max() <= 1e-4


@pytest.mark.parametrize("case", kinds.cases(), ids=str)
def test_every_family_keeps_its_packed_layers(case: Any, tmp_path: Path) -> None:
    model = kinds.build(case)
    outcome = quantise(model, "int8")
    names = case.family.hf_names(case.config)
    packing = packing_of(model, names, outcome.left, case.family.hf_tied(case.config))
    directory.save(tmp_path, model, case.name, case.config, packing=packing)
    back = load(tmp_path)
    same(model, back)
    given = kinds.inputs(case)
    with torch.no_grad():
        one, two = kinds.ours(model, given), kinds.ours(back, given)
    for name in one:
        assert torch.equal(one[name], two[name]), name


@pytest.mark.parametrize("method", ["int8", "nf4"])
def test_experts_that_stay_float_are_named_for_others(method: str) -> None:
    case = next(case for case in kinds.cases("decoder") if case.name == "qwen3_moe" and "untied" in str(case))
    model = kinds.build(case)
    outcome = quantise(model, method, group=8)
    ignored = packing_of(model, case.family.hf_names(case.config), outcome.left).settings
    ignored = ignored["llm_int8_skip_modules"] if method == "nf4" else ignored["ignore"]
    assert {"model.layers.0.mlp.gate", "model.layers.0.mlp.experts", "lm_head"} <= set(ignored)
    assert method == "nf4" or r"re:model\.layers\.0\.mlp\.experts[.].*" in ignored


def test_double_quantised_scales_of_bitsandbytes_are_read(learned: Transformer, tmp_path: Path) -> None:
    made = save(tmp_path, learned, "nf4")
    tensors = load_file(tmp_path / "model.safetensors")
    levels, offset = torch.linspace(-1, 1, 256), 0.25
    note = json.loads(bytes(tensors[f"{DOWN}.weight.quant_state.bitsandbytes__nf4"].tolist()))
    note |= {"nested_offset": offset, "nested_blocksize": 256, "nested_dtype": "float32", "nested_blocksize_": 0}
    inner = tensors[f"{DOWN}.weight.absmax"] - offset
    outer = inner.abs().max()
    coded = (inner[:, None] / outer - levels).abs().argmin(1).to(torch.uint8)
    tensors |= {
        f"{DOWN}.weight.absmax": coded,
        f"{DOWN}.weight.nested_absmax": outer[None],
        f"{DOWN}.weight.nested_quant_map": levels,
        f"{DOWN}.weight.quant_state.bitsandbytes__nf4": torch.tensor(list(json.dumps(note).encode())).to(torch.uint8),
    }
    save_file(tensors, tmp_path / "model.safetensors")
    found = load(tmp_path).stack.blocks[1].feedforward.down
    want = made.stack.blocks[1].feedforward.down
    assert torch.equal(found.codes, want.codes)
    assert (found.scales - want.scales).abs().max() <= outer / 250
    assert len(NF4) == 16


def change(folder: Path, **settings: Any) -> None:
    """Change config.json; `a__b` is `b` inside `a`."""
    path = folder / "config.json"
    whole = json.loads(path.read_text())
    for key, value in settings.items():
        place = whole["quantization_config"]
        *steps, last = key.split("__")
        for step in steps:
            place = place[step]
        place[last] = value
    path.write_text(json.dumps(whole))


WEIGHTS = "config_groups__group_0__weights__"


@pytest.mark.parametrize(
    "settings, sentence",
    [
        ({"quant_method": "gptq"}, r"quantised by 'gptq', and only compressed-tensors and bitsandbytes can be opened"),
        ({"format": "marlin-24"}, r"'quantization_config.format' is 'marlin-24'"),
        ({WEIGHTS + "num_bits": 3}, r"'quantization_config.config_groups.weights.num_bits' is 3, and only 4"),
        ({WEIGHTS + "symmetric": False}, r"weights.symmetric' is False"),
        ({WEIGHTS + "actorder": "group"}, r"weights.actorder' is 'group'"),
        ({WEIGHTS + "strategy": "tensor"}, r"weights.strategy' is 'tensor'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, r"kv_cache_scheme' is"),
        ({"config_groups": {}}, r"quantised in 0 ways"),
    ],
)
def test_what_others_do_otherwise_is_refused_by_name(
    learned: Transformer, settings: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    save(tmp_path, learned, "int4")
    change(tmp_path, **settings)
    with pytest.raises(UserError, match=sentence):
        load(tmp_path)


def test_without_unpacking_it_is_refused(learned: Transformer, tmp_path: Path) -> None:
    save(tmp_path, learned, "int4")
    with pytest.raises(UserError, match="the model is quantised, a float one is needed"):
        directory.load(tmp_path)


def test_damage_is_named(learned: Transformer, tmp_path: Path) -> None:
    save(tmp_path, learned, "int4")
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(DamagedError, match=r"model\.safetensors: is damaged"):
        load(tmp_path)
    path.write_bytes(whole)
    good = load_file(path)
    for end, tensor, error, sentence in [
        (
            "weight_packed",
            good[f"{DOWN}.weight_packed"][:, :-1].contiguous(),
            DamagedError,
            "not what its weight_shape",
        ),
        ("weight_scale", good[f"{DOWN}.weight_scale"][:-1].contiguous(), UserError, r"scales' has shape \[63, 4\]"),
        ("weight_shape", torch.tensor([64, 96]), UserError, r"codes' has shape \[64, 48\]"),
        ("weight_zero_point", torch.zeros(64, 4), UserError, "weight_zero_point' .* is not one of this model's"),
    ]:
        save_file({**good, f"{DOWN}.{end}": tensor}, path)
        with pytest.raises(error, match=sentence):
            load(tmp_path)
    save_file({name: tensor for name, tensor in good.items() if name != f"{DOWN}.weight_scale"}, path)
    with pytest.raises(UserError, match="weight_scale"):
        load(tmp_path)
