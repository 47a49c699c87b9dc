"""Adapters around layers without a float weight (QLoRA): they learn, they are the same, and they are not merged."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelworks.adapters import _attached, _folder
from modelworks.base.errors import UserError
from tests.contracts.kinds import build, cases, gap

KINDS = {"lora": {"rank": 4}, "dora": {"rank": 4}, "vera": {"rank": 4}, "ia3": {}, "prefix": {"tokens": 3},
         "bottleneck": {"width": 4}}  # fmt: skip


class Packed(nn.Module):
    """A layer in int8 with a scale a row: [..., in] -> [..., out]; slopes reach the input."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = layer.in_features, layer.out_features
        scales = layer.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("codes", (layer.weight.detach() / scales).round().to(torch.int8))
        self.register_buffer("scales", scales)
        self.bias = layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.codes.to(x.dtype) * self.scales.to(x.dtype), self.bias)


def packed(model: nn.Module) -> Any:
    for parent in list(model.stack.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear):
                setattr(parent, name, Packed(child))
    return model


def really(model: nn.Module) -> Any:
    """By our own quantisation."""
    walk = pytest.importorskip("modelworks.quant.walk")
    walk.quantise(model, "int8")
    return model


@pytest.fixture(params=["qwen3", "gpt2"])
def case(request: pytest.FixtureRequest) -> Any:
    return next(case for case in cases("decoder") if case.name == request.param)


@pytest.fixture(params=[packed, really])
def model(request: pytest.FixtureRequest, case: Any) -> Any:
    return request.param(build(case)).eval()


def floated(model: Any, case: Any) -> Any:
    """The same function with float layers."""
    twin = build(case)
    for (_, ours), name in [(item, item[0]) for item in model.named_modules() if hasattr(item[1], "codes")]:
        with torch.no_grad():
            layer = twin.get_submodule(name)
            inputs = torch.eye(ours.in_features)
            layer.weight.copy_((ours(inputs) - (0 if ours.bias is None else ours.bias)).t())
    return twin


@pytest.mark.parametrize("kind", KINDS)
def test_learns_around_packed_layers_as_around_float_ones(model: Any, case: Any, kind: str, tmp_path: Path) -> None:
    tokens = torch.randint(1, 97, (3, 9), generator=torch.Generator().manual_seed(1))
    twin = floated(model, case)
    with torch.no_grad():
        base = model(tokens).logits
    slopes = []
    for one in (model, twin):
        _attached.attach(one, case.name, case.config, kind, KINDS[kind])
        with torch.no_grad():
            if kind not in ("prefix",):
                assert gap(one(tokens).logits, base) <= 1e-5
            for number, weight in enumerate(_attached.weights(one, "default")):
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
        one.train()
        one(tokens, labels=tokens).losses.sum().backward()
        slopes.append([weight.grad for weight in _attached.weights(one, "default")])
    for ours, theirs in zip(*slopes, strict=True):
        assert ours is not None and gap(ours, theirs) <= 1e-3 * max(1.0, theirs.abs().max().item())
    model.eval()
    with torch.no_grad():
        beside = model(tokens).logits
        _folder.save(model, "default", tmp_path)
        _attached.detach(model)
        assert torch.equal(model(tokens).logits, base)
        _folder.load(model, case.name, case.config, tmp_path)
        assert gap(model(tokens).logits, beside) <= 1e-5


def test_an_adapter_of_the_float_base_opens_on_the_packed_one(case: Any, tmp_path: Path) -> None:
    plain = build(case)
    other = packed(copy.deepcopy(plain))
    _attached.attach(plain, case.name, case.config, "lora", {"rank": 4})
    _folder.save(plain, "default", tmp_path)
    _folder.load(other, case.name, case.config, tmp_path)


def test_merging_into_packed_layers_is_refused(model: Any, case: Any) -> None:
    _attached.attach(model, case.name, case.config, "lora", {"rank": 4})
    with pytest.raises(UserError, match=r"quantised.*merge into the base as it was before"):
        _attached.merge(model, "default")
    with pytest.raises(UserError, match="quantised"):
        _attached.absorb(model, "default")
