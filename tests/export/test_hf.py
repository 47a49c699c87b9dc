"""Hugging Face directories: the copy is the model, in each number format, and a copy that is not is found out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelworks.base.errors import DamagedError
from modelworks.hub import directory, tensors
from modelworks.recipes import by_hand

from .models import DECODERS, made


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_copy_is_the_model_in_the_format_that_was_asked_for(
    dtype: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = made(tmp_path / "model", *DECODERS["gpt2"])
    by_hand.do("export", {"model": str(source), "dtype": dtype}, tmp_path / "out", 1)
    assert "max_difference 0\n" in capsys.readouterr().out
    before, after = load_file(source / tensors.WEIGHTS), load_file(tmp_path / "out" / tensors.WEIGHTS)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].to(getattr(torch, dtype)), weight) for name, weight in after.items())


def test_a_copy_that_differs_is_not_handed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, real = made(tmp_path / "model", *DECODERS["qwen3"]), directory.save

    def careless(folder: Path, *rest: Any, **others: Any) -> None:
        real(folder, *rest, **others)
        weights = load_file(folder / tensors.WEIGHTS)
        weights["model.norm.weight"][3] += 2**-20
        save_file(weights, folder / tensors.WEIGHTS)

    monkeypatch.setattr(directory, "save", careless)
    with pytest.raises(DamagedError, match=r"differs from the model \(stack.norm.weight\)"):
        by_hand.do("export", {"model": str(source)}, tmp_path / "out", 1)
    assert not (tmp_path / "out").exists()
