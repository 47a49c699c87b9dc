"""`modelworks export --quant`: a directory that opens, generates and trains on, with what it cost measured and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import modelworks as mw
from modelworks.base.errors import UserError
from modelworks.data.tokenizer import Tokenizer
from modelworks.hub import directory
from modelworks.models import qwen3
from modelworks.nn.transformer import Transformer
from modelworks.quant.linear import QuantisedLinear
from modelworks.recipes import by_hand

from . import tiny


@pytest.fixture(scope="module")
def work(learned: Transformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model and a text file."""
    folder = tmp_path_factory.mktemp("export")
    tokenizer = Tokenizer.characters("".join(tiny.ALPHABET))
    first, size = tokenizer.encode(tiny.ALPHABET[0])[0], tokenizer.vocab_size
    config = tiny.CONFIG.model_copy(update={"vocab_size": size})
    model = qwen3.build(config)
    state = {name: weight.clone() for name, weight in learned.state_dict().items()}
    for name in ("stem.tokens.weight", "head.projection.weight"):
        table = torch.zeros(size, config.d_model)
        table[first : first + len(tiny.ALPHABET)] = state[name]
        state[name] = table
    model.load_state_dict(state)
    assert tokenizer.encode("".join(tiny.ALPHABET)) == list(range(first, first + len(tiny.ALPHABET)))
    directory.save(folder / "model", model, "qwen3", config, tokenizer)
    text = "\n\n".join(tiny.text(120, seed) for seed in range(60))
    (folder / "text.txt").write_text(text)
    return folder


def export(work: Path, out: Path, **settings: Any) -> dict[str, Any]:
    return by_hand.do("export", {"model": str(work / "model"), **settings}, out, seed=1)


def test_what_was_lost_is_measured_printed_and_kept(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = str(work / "text.txt")
    found = {
        quant: export(work, tmp_path / quant, quant=quant, calibration=text, group=32)
        for quant in ("int8", "int4-gptq", "int4")
    }
    assert found["int8"]["kl"] <= found["int4-gptq"]["kl"] <= found["int4"]["kl"]
    assert found["int8"]["agreement"] >= found["int4-gptq"]["agreement"] >= found["int4"]["agreement"] > 0.9
    assert abs(found["int8"]["bits_per_byte_difference"]) <= 0.005
    one = found["int4-gptq"]
    assert one["bits_per_byte_after"] - one["bits_per_byte_before"] == pytest.approx(one["bits_per_byte_difference"])
    assert (
        one["bits_per_byte_difference_low"] <= one["bits_per_byte_difference"] <= one["bits_per_byte_difference_high"]
    )
    assert one["bytes_after"] < 0.25 * one["bytes_before"] and one["tokens_per_second_after"] > 0
    printed = capsys.readouterr().out
    assert "kl " in printed and "agreement " in printed
    kept = json.loads((tmp_path / "int4-gptq" / "artefact.json").read_text())["metrics"]
    assert kept["kl"] == one["kl"]
    facts = json.loads((tmp_path / "int4-gptq" / "modelworks.json").read_text())
    assert facts["quantisation"]["method"] == "int4-gptq" and facts["quantisation"]["measured"]["kl"]["n"] > 5
    assert facts["parameters"] == sum(p.numel() for p in directory.load(work / "model").model.parameters())
    again = export(work, tmp_path / "again", quant="int4-gptq", calibration=text, group=32)
    assert {k: v for k, v in again.items() if "second" not in k} == {k: v for k, v in one.items() if "second" not in k}


def test_a_quantised_directory_is_a_model_like_any_other(work: Path, tmp_path: Path) -> None:
    found = export(work, tmp_path / "q", quant="int4", group=32)
    assert "kl" not in found and found["bytes_after"] < found["bytes_before"]
    model = mw.load(tmp_path / "q", device="cpu")
    assert any(isinstance(part, QuantisedLinear) for part in model.model.modules())
    plain = mw.load(work / "model", device="cpu")
    asked = {"max_new_tokens": 12, "temperature": 0.0}
    said = model.generate("the red ", **asked)
    assert len(said) >= 8 and said[:3] == plain.generate("the red ", **asked)[:3]
    tokens = torch.tensor([model.encode("the red " + said)])
    greedy = model.logits(tokens)[0].argmax(-1)
    start = len(model.encode("the red "))
    assert greedy[start - 1 : -1].tolist() == tokens[0, start:].tolist(), "cached steps choose as one pass does"
    wide = mw.load(tmp_path / "q", device="cpu", dtype="float32")
    assert (wide.logits(tokens) - model.logits(tokens)).abs().max() <= 0.2


def test_what_cannot_be_done_is_said(work: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="int4-gptq is calibrated on text"):
        export(work, tmp_path / "a", quant="int4-gptq")
    with pytest.raises(UserError, match="--quant goes with --to hf"):
        export(work, tmp_path / "b", quant="int8", to="gguf")
    (tmp_path / "short.txt").write_text("one paragraph")
    with pytest.raises(UserError, match="fewer than two paragraphs"):
        export(work, tmp_path / "c", quant="int8", calibration=str(tmp_path / "short.txt"))
    export(work, tmp_path / "q", quant="int8")
    with pytest.raises(UserError, match="the model is quantised, a float one is needed"):
        by_hand.do("export", {"model": str(tmp_path / "q"), "quant": "int4"}, tmp_path / "d", seed=1)
    with pytest.raises(UserError, match="quantised, a float one is needed"):
        by_hand.do("export", {"model": str(tmp_path / "q"), "to": "gguf"}, tmp_path / "e", seed=1)
