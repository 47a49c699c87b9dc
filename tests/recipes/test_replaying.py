"""`modelworks train --replay STEP DIR`: finished or not, of a recipe or by hand, from whatever folder."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from modelworks import cli
from modelworks.base.errors import UserError
from modelworks.recipes import replaying
from modelworks.train import steps

from . import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny recipe's run, done."""
    folder = tmp_path_factory.mktemp("made")
    recipe, documents = tiny.write(folder, tiny.RECIPE)
    cli.main(["run", str(recipe), "--set", f"data={documents}", "--out", str(folder / "run"), "--until", "model"])
    return folder / "run"


def test_a_finished_stage(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = made / "model"
    records, machine = steps.read(base / steps.FILE)
    last = max(records)
    assert machine["dtype"] and sorted(records) == list(range(1, last + 1))
    for step in (1, last // 2, last):
        capsys.readouterr()
        cli.main(["train", "--replay", str(step), str(base)])
        said = capsys.readouterr().out
        assert "the same, bit for bit, and every step before it" in said and records[step]["loss"] in said
        assert records[step]["batches"][0] in said and "document" in said and "worst predictions" in said
    with pytest.raises(UserError, match=rf"has no step {last + 1}"):
        replaying.show(base, last + 1)
    with pytest.raises(UserError, match="no training run with a record"):
        replaying.show(made / "corpus", 1)


def test_a_record_that_does_not_fit_is_told(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The negative: one bit of a recorded loss changed."""
    import shutil

    for path in made.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, tmp_path / path.name, symlinks=True)
    copy = next(tmp_path.glob("model-*"))
    lines = [json.loads(line) for line in (copy / steps.FILE).read_text().splitlines()]
    wrong = next(line for line in lines if line.get("step") == 3)
    wrong["loss"] = (float.fromhex(wrong["loss"]) * (1 + 2**-40)).hex()
    (copy / steps.FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    replaying.show(copy, 4)
    assert "the same batches; first different at step 3" in capsys.readouterr().out


def test_an_unfinished_run_by_hand(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "causal_lm", "--model", str(made / "model"), "--data", str(made / "corpus"), "--out"]
    words += [str(tmp_path / "more"), "--steps", "9", "--max-len", "32", "--rows", "4", "--dtype", "float32"]
    words += ["--save-every", "0", "--guard.keep-every", "4"]
    from modelworks.train import hooks

    calls = 0
    after = hooks.Save.__call__

    def stop(self: hooks.Save, run: object, logs: dict[str, float]) -> None:
        nonlocal calls
        calls += 1
        if calls == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        after(self, run, logs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(hooks.Save, "__call__", stop)
        cli.main(words)
    cli.main(["train", "--replay", "6", str(tmp_path / "more")])
    said = capsys.readouterr().out
    assert "the same, bit for bit" in said and "from the checkpoint of step 5" in said
    cli.main(words)  # and it goes on
    cli.main(["train", "--replay", "9", str(tmp_path / "more")])
    said = capsys.readouterr().out
    assert "the same, bit for bit" in said and "from the checkpoint of step 8" in said
    kept = sorted(path.name for path in (tmp_path / "more" / "checkpoints").iterdir())
    assert kept == ["step-000000004", "step-000000008", "step-000000009"]


def test_train_needs_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["train", "causal_lm", "--model", "x"])
    assert end.value.code == 2 and "name the folder for the model with --out DIR" in capsys.readouterr().err
