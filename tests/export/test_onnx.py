"""ONNX files: what onnxruntime gives is what the model gives, for other batches, lengths and padding than were traced."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnx as theirs
import onnxruntime
import pytest
import torch

from modelworks.base.errors import FailureError, UserError
from modelworks.hub import directory, onnx
from modelworks.recipes.artefact import Job
from modelworks.recipes.exports import onnx as exports
from modelworks.recipes.stages import export
from tests.contracts import kinds

from .models import SHAPE, made

ONE_LAYER = SHAPE | {"n_layers": 1, "window": 6}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def exported(source: Path, folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    config = export.Config(model=str(source), to="onnx", **settings)
    return export.run(config, Job("export", folder, folder / "half", {"model": [source]}, 1))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder with grouped heads, rotary positions and a window, exported once."""
    folder = tmp_path_factory.mktemp("onnx")
    made(folder / "model", "mistral", ONE_LAYER)
    (folder / "metrics").write_text(str(exported(folder / "model", folder / "out")["max_difference"]))
    return folder


def test_onnxruntime_gives_the_logits_of_the_model(out: Path) -> None:
    """By onnxruntime alone, at sizes that were neither traced nor tried by the export."""
    assert float((out / "metrics").read_text()) < 1e-4
    session = onnxruntime.InferenceSession(str(out / "out" / onnx.FILE))
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask"]
    model = directory.load(out / "model").model
    for rows, seq in ((1, 3), (2, 1), (5, 128)):
        ids = torch.randint(400, (rows, seq))
        with torch.no_grad():
            ours = model(ids).logits
        ones = torch.ones_like(ids)
        found = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": ones.numpy()})[0]
        assert (torch.from_numpy(found) - ours).abs().max() < 1e-4


def test_padding_on_either_side_changes_nothing(out: Path) -> None:
    session = onnxruntime.InferenceSession(str(out / "out" / onnx.FILE))
    ids = torch.randint(400, (1, 9))

    def logits(before: int, after: int) -> torch.Tensor:
        row = torch.nn.functional.pad(ids, (before, after), value=7)
        mask = torch.nn.functional.pad(torch.ones_like(ids), (before, after))
        found = session.run(None, {"input_ids": row.numpy(), "attention_mask": mask.numpy()})[0]
        return torch.from_numpy(found)[:, before : before + 9]

    assert (logits(0, 5) - logits(0, 0)).abs().max() < 1e-5
    assert (logits(4, 0) - logits(0, 0)).abs().max() < 1e-5


def test_the_file_is_sound_and_says_nothing_of_who_made_it(out: Path) -> None:
    path = out / "out" / onnx.FILE
    theirs.checker.check_model(str(path), full_check=True)
    assert str(Path(onnx.__file__).parent).encode() not in path.read_bytes()
    assert (out / "out" / "tokenizer.json").is_file()


def test_another_model_is_told_apart(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The export compares with the model that it was given: a file of another one does not pass."""
    path = (out / "out" / onnx.FILE).read_bytes()

    def other(where: Path, *rest: Any) -> list[str]:
        where.write_bytes(path)
        return ["logits"]

    monkeypatch.setattr(onnx, "write", other)
    with pytest.raises(FailureError, match="differ by"):
        exported(made(tmp_path / "model", "mistral", ONE_LAYER, seed=2), tmp_path / "out")
    monkeypatch.setattr(onnx, "write", lambda where, *rest: where.write_bytes(path[:5000]) and ["logits"])
    with pytest.raises(FailureError, match="does not open it"):
        exported(out / "model", tmp_path / "half")


def test_what_onnx_does_not_carry_is_refused_in_a_sentence(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, says in {"clip": "tokens or images alone", "t5": "alone", "mixtral": "mixtures of experts"}.items():
        case = next(case for case in kinds.cases() if case.name == name)
        with pytest.raises(UserError, match=says):
            onnx.write(tmp_path / "model.onnx", kinds.build(case))
    with pytest.raises(UserError, match="does not write bfloat16; it writes float32"):
        exported(out / "model", tmp_path / "out", dtype="bfloat16")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnxruntime; install it with pip install 'modelworks\[export\]'"):
        exported(out / "model", tmp_path / "out")


EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")
CARRIED = [case for case in kinds.cases("decoder", "encoder", "vision") if case.name not in EXPERTS]


@pytest.mark.small
@pytest.mark.timeout(600)
@pytest.mark.parametrize("case", CARRIED, ids=str)
def test_every_family_that_reads_tokens_or_images_alone(case: kinds.Case, tmp_path: Path) -> None:
    model = kinds.build(case)
    names = onnx.write(tmp_path / onnx.FILE, model, getattr(case.config, "max_len", 0))
    session, wrapped = onnx.session(tmp_path / onnx.FILE), onnx.called(model)
    assert [output.name for output in session.get_outputs()] == names
    for rows, seq in exports.SIZES:
        feed = onnx.inputs(model, rows, min(seq, getattr(case.config, "max_len", seq)))
        with torch.no_grad():
            ours = wrapped(**feed)
        for one, other in zip(ours, onnx.outputs(session, feed), strict=True):
            assert (one - other).abs().max() < 1e-4
