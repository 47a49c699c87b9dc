"""What every family owes: the results and gradients of its Hugging Face twin, and directories that survive the way
out and back. What a kind of family owes besides stands in test_decoders.py, test_encoders.py and so on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modelworks.base import folders
from modelworks.hub import directory, tensors
from modelworks.nn.arithmetic import parameters

from .kinds import FAMILIES, Case, build, cases, gap, inputs, ours, theirs, twin

CLOSE = 1e-5
PUBLISHED = [case for case in cases() if not case.name.startswith("gpt3")]
"""Families that `transformers` has: all but GPT-3."""


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tiny tensors: one thread is quicker than two that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def agree(left: dict[str, Tensor], right: dict[str, Tensor], close: float = CLOSE) -> None:
    shared = left.keys() & right.keys()
    assert shared, (list(left), list(right))
    for name in shared:
        assert gap(left[name], right[name]) <= close, name


def stored(folder: Path) -> dict[str, Tensor]:
    return {name: t for path in tensors.weight_files(folder) for name, t in load_file(path).items()}


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_hugging_face_model_opens_here(case: Case, tmp_path: Path) -> None:
    model = twin(case)
    model.save_pretrained(tmp_path)
    opened = directory.load(tmp_path)
    assert (opened.family, opened.config) == (case.name, case.config)
    given = inputs(case)
    with torch.no_grad():
        agree(ours(opened.model, given), theirs(model, case, given))


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_our_model_opens_there(case: Case, tmp_path: Path) -> None:
    import transformers

    model = build(case)
    directory.save(tmp_path, model, case.name, case.config)
    kind = getattr(transformers, directory.architecture(case.family, case.config))
    opened, report = kind.from_pretrained(tmp_path, output_loading_info=True, attn_implementation="eager")
    ignored = lambda name: any(re.fullmatch(pattern, name) for pattern in case.family.HF_IGNORED)  # noqa: E731
    assert all(map(ignored, report["missing_keys"]))
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    opened.save_pretrained(tmp_path / "again")  # what they make of it is what we wrote, bit for bit
    mine, again = stored(tmp_path), stored(tmp_path / "again")
    assert all(torch.equal(mine[name], tensor) for name, tensor in again.items() if name in mine)
    assert all(map(ignored, again.keys() - mine.keys()))
    given = inputs(case)
    with torch.no_grad():
        agree(ours(model, given), theirs(opened.eval(), case, given))


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_gradients_are_theirs(case: Case, tmp_path: Path) -> None:
    """Slopes are written as if they were weights, so that both sides have the names and the layout of the file."""
    model = twin(case)
    model.save_pretrained(tmp_path / "weights")
    opened = directory.load(tmp_path / "weights").model
    given = inputs(case)
    mine, want = ours(opened, given), theirs(model, case, given)
    for results in (mine, want):
        dice = torch.Generator().manual_seed(3)
        total = torch.zeros(())
        for name in sorted(mine.keys() & want.keys()):
            total = total + (results[name] * torch.randn(results[name].shape, generator=dice)).sum()
        total.backward()
    for side in (opened, model):
        with torch.no_grad():
            for weight in side.parameters():
                weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
    model.save_pretrained(tmp_path / "slopes")
    slopes = stored(tmp_path / "slopes")
    got = tensors.gather(opened, case.family, case.config)
    scale = max(slope.abs().max().item() for slope in slopes.values())
    compared = [name for name in got if name in slopes]
    assert len(compared) >= 0.9 * len(got)
    for name in compared:
        assert gap(got[name], slopes[name]) <= CLOSE * max(1.0, scale), name


@pytest.mark.parametrize("case", cases(), ids=str)
def test_export_then_import_is_identity(case: Case, tmp_path: Path) -> None:
    model = build(case)
    directory.save(tmp_path, model, case.name, case.config)
    back = directory.load(tmp_path)
    assert back.config == case.config
    again = tensors.contents(back.model)
    for key, weight in tensors.contents(model).items():
        assert torch.equal(weight, again[key]), key
    on_disk = sum(tensor.numel() for tensor in stored(tmp_path).values())
    assert on_disk == sum(tensor.numel() for tensor in tensors.contents(model).values())  # a tied one stands once


@pytest.mark.parametrize("case", cases(), ids=str)
def test_shards_and_narrow_numbers_survive(case: Case, tmp_path: Path) -> None:
    model = build(case).to(torch.bfloat16)
    directory.save(tmp_path, model, case.name, case.config)
    (tmp_path / tensors.WEIGHTS).unlink()
    tensors.write(tensors.gather(model, case.family, case.config), tmp_path, shard_bytes=20_000)
    assert len(tensors.weight_files(tmp_path)) > 1
    again = tensors.contents(directory.load(tmp_path).model)
    for key, weight in tensors.contents(model).items():
        assert weight.dtype == again[key].dtype and torch.equal(weight, again[key]), key


@pytest.mark.parametrize("case", PUBLISHED, ids=str)
def test_bfloat16_within_its_rounding(case: Case, tmp_path: Path) -> None:
    """Ours in bfloat16 is no further from float32 than theirs is, give or take a rounding."""
    model = twin(case).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    exact = directory.load(tmp_path, dtype=torch.float32).model
    rounded = directory.load(tmp_path).model
    given = inputs(case)
    narrow = {name: t.bfloat16() if t.is_floating_point() else t for name, t in given.items()}
    with torch.no_grad():
        want, got, other = ours(exact, given), ours(rounded, narrow), theirs(model, case, narrow)
    for name in want.keys() & other.keys():
        size = want[name].abs().max().item()
        assert gap(got[name], want[name]) <= 2 * gap(other[name], want[name]) + 0.02 * size, name


@pytest.mark.parametrize("case", cases(), ids=str)
def test_batch_of_one_is_batch_of_many(case: Case) -> None:
    model, given = build(case), inputs(case)
    with torch.no_grad():
        together = ours(model, given)
        if case.kind == "pair":  # its logits are of every text with every image of the batch
            del together["logits"]
        for row in range(len(next(iter(given.values())))):
            alone = ours(model, {name: tensor[row : row + 1] for name, tensor in given.items()})
            agree(alone, {name: tensor[row : row + 1] for name, tensor in together.items()})


@pytest.mark.parametrize("name", FAMILIES)
def test_every_preset_has_the_parameters_that_arithmetic_says(name: str) -> None:
    family: Any = folders.find("modelworks.models", name)
    assert family.PRESETS
    for label, preset in family.PRESETS.items():
        with torch.device("meta"):
            model = family.build(preset)
        assert sum(weight.numel() for weight in model.parameters()) == parameters(family.shape(preset)), label
        assert set(family.hf_names(preset)) == set(tensors.contents(model)), label


@pytest.mark.parametrize("case", cases(), ids=str)
def test_the_tiny_models_have_the_parameters_that_arithmetic_says(case: Case) -> None:
    want = sum(weight.numel() for weight in build(case).parameters())
    assert parameters(case.family.shape(case.config)) == want
