"""What cannot be done is said in one sentence, and leaves the model as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.adapters import _attached, _folder
from modelworks.base.errors import DamagedError, FailureError, UserError
from modelworks.hub import directory
from tests.contracts.kinds import build, cases

CASE = next(case for case in cases("decoder") if case.name == "qwen3")
ENCODER = next(case for case in cases("encoder") if case.name == "bert")


@pytest.fixture
def model() -> Any:
    return build(CASE)


@pytest.fixture
def saved(model: Any, tmp_path: Path) -> Path:
    _attached.attach(model, CASE.name, CASE.config, "lora", {"rank": 4, "targets": ["query", "down"]})
    _folder.save(model, "default", tmp_path / "adapter", base="someone/base")
    _attached.detach(model)
    return tmp_path / "adapter"


def attach(model: Any, kind: str, settings: dict[str, Any], name: str = "default") -> None:
    _attached.attach(model, CASE.name, CASE.config, kind, settings, name=name)


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        ("lorra", {}, "lora"),
        ("lora", {"rnak": 4}, "rank"),
        ("lora", {"rank": 0}, "rank"),
        ("lora", {"rank": 4000}, "rank: 4000 is more than"),
        ("lora", {"rank_pattern": {"query": 0}}, "at least 1"),
        ("lora", {"targets": ["querry"]}, "'querry' is no linear layer.*query"),
        ("lora", {"targets": ["lm_head"]}, "'lm_head' is no linear layer"),
        ("lora", {"targets": []}, "at least one layer"),
        ("lora", {"targets": "nothing.*"}, "called like"),
        ("lora", {"targets": "(("}, "no regular expression"),
        ("bitfit", {}, "no such biases"),
        ("prefix", {"tokens": 64}, "no room"),
    ],
)
def test_settings_that_do_not_fit(model: Any, kind: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        attach(model, kind, settings)
    assert _attached.names(model) == [] and all(weight.requires_grad for weight in model.parameters())


def test_names(model: Any) -> None:
    attach(model, "lora", {"rank": 2}, "support")
    with pytest.raises(UserError, match="has an adapter called 'support'"):
        attach(model, "lora", {"rank": 2}, "support")
    for name in ("a.b", "", "values", "training"):
        with pytest.raises(UserError, match="cannot be an adapter's name"):
            attach(model, "lora", {"rank": 2}, name)
    for call in (_attached.use, _attached.merge, _attached.detach):
        with pytest.raises(UserError, match="did you mean 'support'"):
            call(model, "suport")
    with pytest.raises(UserError, match="has no adapters"):
        _attached.use(build(CASE), "support")


def test_a_model_is_not_saved_whole_while_adapters_are_on_it(model: Any, tmp_path: Path) -> None:
    attach(model, "lora", {"rank": 2})
    with pytest.raises(FailureError, match="merge adapters before saving"):
        directory.save(tmp_path, model, CASE.name, CASE.config)


def test_rows_must_be_as_many_as_named(model: Any) -> None:
    attach(model, "lora", {"rank": 2}, "support")
    _attached.use(model, ["support", None])
    with pytest.raises(Exception, match="3 rows where adapters were named for 2"):
        model(torch.ones(3, 4, dtype=torch.long))


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_are_for_decoders(kind: str) -> None:
    with pytest.raises(UserError, match="decoders only"):
        _attached.attach(build(ENCODER), ENCODER.name, ENCODER.config, kind, {"tokens": 3})


def change(folder: Path, **settings: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def tensors(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    path = folder / "adapter_model.safetensors"
    found = load_file(path)
    edit(found)
    save_file(found, path)


def refused(model: Any, folder: Path, said: str, error: type[Exception] = UserError, config: Any = CASE.config) -> None:
    before = [name for name, _ in model.named_modules()]
    with pytest.raises(error, match=said):
        _folder.load(model, CASE.name, config, folder)
    assert [name for name, _ in model.named_modules()] == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"peft_type": "LOHA"}, "'LOHA' is not supported"),
        ({"bias": "all"}, "'bias' is 'all'"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights' is 'pissa'"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save'"),
        ({"use_qalora": True}, "'use_qalora'.*may change"),
        ({"some_new_trick": 3}, "'some_new_trick' .*is not known here"),
        ({"layer_replication": [[0, 2]]}, "'layer_replication'"),
        ({"r": 3}, "has another rank"),
    ],
)
def test_settings_that_change_the_maths(model: Any, saved: Path, settings: dict[str, Any], said: str) -> None:
    change(saved, **settings)
    refused(model, saved, said)


def test_settings_that_change_nothing(model: Any, saved: Path) -> None:
    change(saved, peft_version="9.9", task_type=None, megatron_core="x", some_new_trick=None, another=False)
    _folder.load(model, CASE.name, CASE.config, saved)


def test_tensors_that_do_not_fit(model: Any, saved: Path) -> None:
    name = next(iter(load_file(saved / "adapter_model.safetensors")))
    tensors(
        saved, lambda found: found.update({"base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": torch.ones(2)})
    )
    refused(model, saved, "layers.9.*belongs to nothing")
    tensors(saved, lambda found: found.pop("base_model.model.model.layers.9.mlp.up_proj.lora_A.weight"))
    tensors(saved, lambda found: found.pop(name))
    refused(model, saved, "is missing")
    tensors(
        saved,
        lambda found: (
            [found.pop(key) for key in list(found)[1:]] and found.update({"x.lora_A.weight": found.popitem()[1]})
        ),
    )
    refused(model, saved, "belongs to a layer of this base|belongs to nothing")


def test_adapters_of_another_base(model: Any, saved: Path) -> None:
    config = CASE.config.model_copy(update={"d_ff": 64})
    wide = CASE.family.build(config)
    refused(wide, saved, "another base .someone/base.: its d_ff is", config=config)
    with torch.no_grad():
        model.stack.norm.weight.mul_(2)
    refused(model, saved, "trained on other weights of this shape .someone/base.")
    facts = json.loads((saved / "modelworks.json").read_text())
    facts["base"]["family"] = "gpt2"
    (saved / "modelworks.json").write_text(json.dumps(facts))
    refused(model, saved, "family gpt2")
    (saved / "modelworks.json").unlink()  # what peft wrote says nothing of it: shapes decide
    refused(wide, saved, "asks? for", config=config)
    _folder.load(model, CASE.name, CASE.config, saved)


def test_files(model: Any, saved: Path, tmp_path: Path) -> None:
    refused(model, tmp_path, "no adapter_config.json")
    path = saved / "adapter_model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(model, saved, "is damaged", DamagedError)
    path.unlink()
    refused(model, saved, "is not complete")
    (saved / "adapter_model.bin").write_bytes(b"\x80\x04K\x01.")
    refused(model, saved, "pickle files can run code")
    (saved / "adapter_config.json").write_text("[]")
    refused(model, saved, "not a mapping", DamagedError)


def test_an_adapter_that_names_no_base(saved: Path) -> None:
    assert _folder.base_of(saved) == "someone/base"
    (saved / "modelworks.json").unlink()
    change(saved, base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which model"):
        _folder.base_of(saved)
    change(saved, base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(UserError, match="is not there"):
        _folder.base_of(saved)
