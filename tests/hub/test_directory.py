"""Directories that are not what they should be: one sentence each, with the tensor's or the file's name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base import files
from modelworks.base.errors import DamagedError, FailureError, UserError
from modelworks.hub import directory, presets, tensors

NORM = "model.layers.1.input_layernorm.weight"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model, family, config = presets.build("qwen3-nano", vocab_size=64)
    directory.save(tmp_path / "m", model, family, config, facts={"recipe": "demo"})
    return tmp_path / "m"


def edit(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def test_what_a_folder_holds(saved: Path) -> None:
    assert {path.name for path in saved.iterdir()} == {
        "config.json", "generation_config.json", "model.safetensors", "modelworks.json", "README.md",
    }  # fmt: skip
    facts = directory.load(saved).facts
    assert facts["recipe"] == "demo" and facts["family"] == "qwen3"
    assert facts["parameters"] == sum(t.numel() for t in load_file(saved / "model.safetensors").values())


def test_missing_tensor(saved: Path) -> None:
    edit(saved, lambda weights: weights.pop(NORM))
    with pytest.raises(UserError, match=rf"'{NORM}' is missing"):
        directory.load(saved)


def test_extra_tensor(saved: Path) -> None:
    edit(saved, lambda weights: weights.update({"model.layers.0.self_attn.q_proj.bias": torch.zeros(128)}))
    with pytest.raises(UserError, match=r"'model.layers.0.self_attn.q_proj.bias' \[128\] is not one of this model's"):
        directory.load(saved)


def test_misshapen_tensor(saved: Path) -> None:
    edit(saved, lambda weights: weights.update({NORM: torch.ones(7)}))
    with pytest.raises(UserError, match=rf"'{NORM}' has shape \[7\] and config.json asks for \[128\]"):
        directory.load(saved)


def test_a_tied_copy_must_be_a_copy(saved: Path) -> None:
    edit(saved, lambda w: w.update({"lm_head.weight": w["model.embed_tokens.weight"].clone()}))
    directory.load(saved)
    edit(saved, lambda w: w["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match=r"differs from 'model.embed_tokens.weight'"):
        directory.load(saved)


def test_pickles_are_refused_by_name(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model.bin: pickle files can run code"):
        directory.load(saved)


def test_no_weights_at_all(saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"there is no model.safetensors in it"):
        directory.load(saved)


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_weights(saved: Path, keep: float) -> None:
    data = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(DamagedError, match=r"model.safetensors: is damaged"):
        directory.load(saved)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_one_bit_flipped_in_a_sealed_folder(saved: Path, name: str) -> None:
    files.seal(saved)
    directory.load(saved)
    data = bytearray((saved / name).read_bytes())
    data[-9] ^= 1
    (saved / name).write_bytes(data)
    with pytest.raises(DamagedError, match=name):
        directory.load(saved)


def test_config_that_is_not_json(saved: Path) -> None:
    (saved / "config.json").write_text('{"model_type": ')
    with pytest.raises(DamagedError, match="not valid JSON"):
        directory.load(saved)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"architectures": ["Qwen9ForCausalLM"]}, "did you mean 'Qwen"),
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM is not supported"),
        ({"hidden_size": "wide"}, "'d_model'"),
        ({"attention_bias": True}, "cannot be opened exactly"),
    ],
)
def test_configs_we_do_not_do(saved: Path, change: dict, message: str) -> None:
    settings = json.loads((saved / "config.json").read_text()) | change
    (saved / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match=message):
        directory.load(saved)


def test_a_path_that_is_not_there_touches_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    for path in ("runs/demo/assistant", "/no/such/folder", "./here", "~/models/x"):
        with pytest.raises(UserError, match="there is no such folder"):
            directory.load(path)


def test_a_hub_name_without_a_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(FailureError, match="the Hugging Face hub cannot be reached"):
        directory.load("someone/some-model")


def test_shards_hold_the_same_weights(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    loaded = directory.load(saved)
    weights = tensors.gather(loaded.model, presets.family_module("qwen3"), loaded.config)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    tensors.write(weights, sharded, shard_bytes=500_000)
    (sharded / "config.json").write_bytes((saved / "config.json").read_bytes())
    names = tensors.weight_files(sharded)
    assert len(names) > 3 and not (sharded / "model.safetensors").exists()
    back, theirs = directory.load(sharded).model, AutoModelForCausalLM.from_pretrained(sharded)
    for (key, left), right in zip(loaded.model.named_parameters(), back.parameters(), strict=True):
        assert torch.equal(left, right), key
    tokens = torch.randint(64, (1, 9))
    assert torch.equal(back(tokens).logits, loaded.model(tokens).logits)
    assert (theirs(tokens).logits - back(tokens).logits).abs().max() <= 1e-5
    names[1].unlink()
    with pytest.raises(DamagedError, match="is missing"):
        directory.load(sharded)


def test_an_index_may_not_point_outside(saved: Path) -> None:
    files.write_json(saved / tensors.INDEX, {"weight_map": {NORM: "../../etc/model.safetensors"}})
    with pytest.raises(UserError, match="no safetensors file of this folder"):
        directory.load(saved)


def test_opened_in_the_format_asked_for(saved: Path) -> None:
    model = directory.load(saved, dtype=torch.bfloat16).model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}
    assert not model.training and model.head.projection.weight is model.stem.tokens.weight


def test_a_full_disk_is_one_sentence(saved: Path, tmp_path: Path) -> None:
    import resource

    loaded = directory.load(saved)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    import signal

    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(FailureError, match="the disk is full"):
            directory.save(tmp_path / "full", loaded.model, loaded.family, loaded.config)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, old)


def test_the_tokenizer_travels_with_the_model(tmp_path: Path) -> None:
    tokenizer_module = pytest.importorskip("modelworks.data.tokenizer")
    tokenizer = tokenizer_module.Tokenizer.train(["to be or not to be, that is the question"] * 20, vocab_size=280)
    model, family, config = presets.build("qwen3-nano", vocab_size=tokenizer.vocab_size)
    directory.save(tmp_path / "m", model, family, config, tokenizer)
    back = directory.load(tmp_path / "m")
    assert back.tokenizer.encode("to be") == tokenizer.encode("to be")
    ends = json.loads((tmp_path / "m" / "generation_config.json").read_text())
    assert ends["eos_token_id"] == [tokenizer.eos, tokenizer.im_end]
    small, family, config = presets.build("qwen3-nano", vocab_size=tokenizer.vocab_size - 1)
    directory.save(tmp_path / "small", small, family, config, tokenizer)
    with pytest.raises(UserError, match="do not belong together"):
        directory.load(tmp_path / "small")
