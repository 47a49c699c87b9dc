"""A second run does nothing, a change redoes only what depends on it, damage is mended, kills change nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelworks.base import files
from modelworks.base.errors import UserError
from modelworks.recipes import schema
from modelworks.recipes.runner import Runner

from . import tiny


def run(recipe: Path, documents: Path, out: Path, *assignments: str) -> Runner:
    runner = Runner(schema.load(str(recipe), [f"data={documents}", *assignments]), out, lambda text: None)
    runner.run()
    return runner


def test_only_what_changed_is_done(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path)
    out = tmp_path / "out"
    assert run(recipe, documents, out).done == ["pages", "corpus", "tokens", "model"]
    assert run(recipe, documents, out).done == []
    assert run(recipe, documents, out, "stages.model.learning_rate=0.001").done == ["model"]
    assert run(recipe, documents, out, "stages.tokens.vocab_size=290").done == ["tokens", "model"]
    assert run(recipe, documents, out).done == []  # the first artefacts are still there
    (documents / "00.txt").write_text("Something else altogether stands here now, and it is long enough to stay.")
    assert run(recipe, documents, out).done == ["pages", "corpus", "tokens", "model"]
    assert not [p.name for p in out.iterdir() if p.name.endswith(files.PARTIAL)]
    assert (out / "model").is_symlink() and (out / "model" / "model.safetensors").is_file()


def test_a_damaged_artefact_is_made_again(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path)
    runner = run(recipe, documents, tmp_path / "out")
    weights = runner.folders["model"] / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert run(recipe, documents, tmp_path / "out").done == ["model"]
    assert weights.read_bytes() == good


def test_from_and_until(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path)
    runner = Runner(schema.load(str(recipe), [f"data={documents}"]), tmp_path / "out", lambda text: None)
    runner.run(last="corpus")
    assert runner.done == ["pages", "corpus"] and not (tmp_path / "out" / "model").exists()
    again = Runner(runner.recipe, tmp_path / "out", lambda text: None)
    again.run(first="corpus", last="tokens")
    assert again.done == ["corpus", "tokens"]
    with pytest.raises(UserError, match="did you mean 'tokens'"):
        again.run(last="tokns")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("vocab_size: 300", "vocab_sise: 300", [":5", "vocab_size"]),
        ("do: tokenizer", "do: tokeniser", [":5", "did you mean 'tokenizer'"]),
        ("from: corpus, vocab", "from: corpse, vocab", [":5", "did you mean 'corpus'"]),
        ("rows: 4", "row: 4", [":13", "did you mean 'rows'"]),
        ("objective: causal_lm", "objective: casual_lm", ["did you mean 'causal_lm'"]),
        ("budget: {steps: 12}", "budget: {}", ["steps or tokens"]),
        ("rows: 4", "rows: 0", ["rows", "greater"]),
        ("name: tiny", "nam: tiny", [":1", "did you mean 'name'"]),
    ],
)
def test_mistakes_in_a_recipe(tmp_path: Path, old: str, new: str, says: list[str]) -> None:
    recipe, documents = tiny.write(tmp_path, tiny.RECIPE.replace(old, new))
    with pytest.raises(UserError) as caught:
        schema.load(str(recipe), [f"data={documents}"])
    assert all(part in str(caught.value) for part in says), str(caught.value)


def test_a_recipe_that_needs_data_asks_for_it() -> None:
    with pytest.raises(UserError, match="--set data=PATH"):
        schema.load("char-lm")
    with pytest.raises(UserError, match="did you mean 'char-lm'"):
        schema.load("char-ml")


def test_effort_multiplies_every_budget(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path)
    settings = schema.load(str(recipe), [f"data={documents}", "effort=0.5"]).stages["model"].settings
    assert (settings.train.steps, settings.train.evaluate_every) == (6, 3)


def test_every_shipped_recipe_is_sound(tmp_path: Path) -> None:
    for name in schema.library():
        recipe = schema.load(name, [f"data={tmp_path}"])
        assert recipe.stages and recipe.head.name == name and recipe.head.description


def killed_until_done(recipe: Path, documents: Path, out: Path, kills: int, seed: int) -> int:
    """Run the recipe, killing it with -9 at random moments `kills` times, then let it finish. Returns kills that hit."""
    rng, hit = random.Random(seed), 0
    line = [sys.executable, "-m", "modelworks", "run", str(recipe), "--set", f"data={documents}", "--out", str(out)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for _ in range(kills):
        child = subprocess.Popen(line, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(1.2 + rng.random() * 3.5)
        hit += child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
    done = subprocess.run(line, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return hit


def weights(out: Path) -> bytes:
    files.verify((out / "model").resolve())
    return (out / "model" / "model.safetensors").read_bytes()


@pytest.mark.timeout(300)
def test_kills_lose_nothing_and_change_no_bit(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path)
    alone = tiny.command("run", recipe, "--set", f"data={documents}", "--out", tmp_path / "alone")
    assert alone.returncode == 0, alone.stderr
    hit = killed_until_done(recipe, documents, tmp_path / "killed", kills=3, seed=3)
    assert hit, "every child had finished before it was killed: the test proved nothing"
    assert weights(tmp_path / "killed") == weights(tmp_path / "alone")


@pytest.mark.small
@pytest.mark.timeout(3600)
def test_a_hundred_kills(tmp_path: Path) -> None:
    longer = tiny.RECIPE.replace("steps: 12", "steps: 120").replace("evaluate_every: 6", "evaluate_every: 40")
    recipe, documents = tiny.write(tmp_path, longer)
    assert tiny.command("run", recipe, "--set", f"data={documents}", "--out", tmp_path / "alone").returncode == 0
    hits = rounds = 0
    while hits < 100:
        hits += killed_until_done(recipe, documents, tmp_path / f"killed{rounds}", kills=5, seed=rounds)
        assert weights(tmp_path / f"killed{rounds}") == weights(tmp_path / "alone")
        rounds += 1
        assert rounds < 60
