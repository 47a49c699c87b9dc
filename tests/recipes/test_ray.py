"""Two workers of a local Ray cluster train like two ranks of `--devices`, also when one of them is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelworks.base.errors import UserError
from modelworks.train import ray_cluster

from . import tiny

has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="needs Ray: pip install 'modelworks[cluster]'")


def workers(since: set[int]) -> list[int]:
    """Process ids of Ray Train's workers that were not there before; Ray names its processes so."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if place.read_bytes().startswith(b"ray::RayTrainWorker") and int(place.parent.name) not in since:
                found.append(int(place.parent.name))
        except OSError:
            continue
    return found


@needs_ray
@pytest.mark.small
@pytest.mark.timeout(900)
def test_a_killed_worker_changes_no_bit(tmp_path: Path) -> None:
    recipe, documents = tiny.write(tmp_path, tiny.RECIPE.replace("steps: 12", "steps: 60"))
    words = ["run", recipe, "--set", f"data={documents}", "--devices", 2]
    calm = tiny.command(*words, "--out", tmp_path / "calm", MODELWORKS_THREADS="1")
    assert calm.returncode == 0, calm.stderr
    before, out = set(workers(set())), tmp_path / "killed"
    line = [sys.executable, "-m", "modelworks", *map(str, words), "--out", str(out), "--cluster", "local"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MODELWORKS_THREADS": "1"}
    child = subprocess.Popen(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path)
    while not list(out.glob(".model-*/checkpoints/step-00000001*")):
        assert child.poll() is None, child.communicate()[0]
        time.sleep(0.05)
    os.kill(workers(before)[-1], signal.SIGKILL)
    said, _ = child.communicate(timeout=400)
    assert child.returncode == 0, said[-3000:]
    assert "starting again from the newest checkpoint (1 of 3)" in said
    files = [folder / "model" / "model.safetensors" for folder in (tmp_path / "calm", out)]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert not list(tmp_path.glob(".ray-*")), "what Ray writes about its workers goes with it"


@needs_ray
@pytest.mark.small
@pytest.mark.timeout(900)
def test_mistakes_on_a_cluster(tmp_path: Path) -> None:
    """What a worker says in a sentence is told by the launcher and not tried again; too many devices are refused."""
    recipe, documents = tiny.write(tmp_path)
    (tmp_path / "out").mkdir()
    words = ["run", recipe, "--set", f"data={documents}", "--cluster", "local"]
    many = tiny.command(*words, "--devices", 4, "--set", "stages.model.rows=1000", "--devices", 1000, cwd=tmp_path)
    assert many.returncode == 2 and "the cluster at local has" in many.stderr, many.stderr
    made = tiny.command("run", recipe, "--set", f"data={documents}", "--until", "tokens", "--out", tmp_path / "made")
    assert made.returncode == 0, made.stderr
    (tmp_path / "out" / "mine.txt").write_text("not to be replaced")
    typed = ["train", "causal_lm", "--model", "qwen3-nano", "--data", tmp_path / "made" / "corpus", "--steps", 2]
    typed += ["--tokenizer", tmp_path / "made" / "tokens", "--rows", 2, "--out", tmp_path / "out"]
    full = tiny.command(*typed, "--devices", 2, "--cluster", "local", cwd=tmp_path)
    assert full.returncode == 2, full.stderr
    assert "modelworks: " in full.stderr and "holds something that modelworks did not make" in full.stderr
    assert "starting again" not in full.stderr


@pytest.mark.parametrize(
    ("address", "says"),
    [("127.0.0.1:1", "nothing answers there"), ("somewhere", "write it as HOST:PORT"), ("h:99999", "nothing answers")],
)
def test_an_address_that_does_not_answer(address: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        ray_cluster._answers(address)


@pytest.mark.skipif(has_ray, reason="Ray is here")
def test_without_ray() -> None:
    with pytest.raises(UserError, match=r"pip install 'modelworks\[cluster\]'"):
        ray_cluster.launch("modelworks.cli", [], 2, "local")
