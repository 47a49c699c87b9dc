"""Vision models and pairs have adapters too: on, learned, saved, opened, off."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from modelworks.adapters import _attached, _folder
from tests.contracts.kinds import Case, build, cases, gap, inputs, ours


def first_of_each() -> list[Case]:
    found: dict[str, Case] = {}
    for case in cases():
        if case.kind not in ("decoder", "encoder", "encoder_decoder"):
            found.setdefault(case.name, case)
    return list(found.values())


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    """To the last bit but one: SigLIP's sums depend on where in memory an image lies."""
    return all(gap(left[name], right[name]) <= 1e-6 for name in right)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["lora", "bottleneck"])
@pytest.mark.parametrize("case", first_of_each(), ids=str)
def test_on_and_off(case: Case, kind: str, tmp_path: Path) -> None:
    model, given = build(case), inputs(case)
    base = ours(model, given)
    _attached.attach(model, case.name, case.config, kind, {"rank": 2} if kind == "lora" else {"width": 3})
    assert same(ours(model, given), base)
    for weight in _attached.weights(model, "default"):
        weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    moved = ours(model, given)
    assert any(gap(moved[name], base[name]) > 1e-3 for name in base)
    _folder.save(model, "default", tmp_path)
    _attached.detach(model)
    assert same(ours(model, given), base)
    _folder.load(model, case.name, case.config, tmp_path)
    assert same(ours(model, given), moved)
