"""Two workers of a local Ray cluster train like two ranks of `--devices`, also when one of them is killed."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from modelworks.base.errors import FailureError, UserError
from modelworks.train import cluster, ray_cluster

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


class Fake(types.ModuleType):
    """A Ray whose workers do what the test says, one thing for each time that they are started."""

    def __init__(self, ends: list[tuple[int, str] | Exception | None]) -> None:
        super().__init__("ray")
        self.ends, self.started, self.down = ends, 0, False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        fake = self

        class Failed(Exception):
            pass

        class Trainer:
            def __init__(self, worker: object, train_loop_config: dict[str, Any], **_: object) -> None:
                self.listener = train_loop_config["listener"]

            def fit(self) -> None:
                fake.started += 1
                end = fake.ends.pop(0)
                if isinstance(end, tuple):
                    self.listener.tell.remote(*end)
                if end is not None:
                    raise Failed

        def keep(**_: object) -> None:
            return None

        names = {
            "ray": self, "ray.train": types.SimpleNamespace(RunConfig=keep, ScalingConfig=keep),
            "ray.train.torch": types.SimpleNamespace(TorchConfig=keep, TorchTrainer=Trainer),
            "ray.train.v2.api.exceptions": types.SimpleNamespace(TrainingFailedError=Failed),
        }  # fmt: skip
        for name, module in names.items():
            patch.setitem(sys.modules, name, module)

    def init(self, **_: object) -> None: ...

    def shutdown(self) -> None:
        self.down = True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def get(self, value: object) -> object:
        return value

    def remote(self, **_: object) -> Any:
        def wrapped(cls: type) -> Any:
            made = cls()
            calls = {name: types.SimpleNamespace(remote=getattr(made, name)) for name in ("tell", "told")}
            return types.SimpleNamespace(remote=lambda: types.SimpleNamespace(**calls))

        return wrapped


@pytest.mark.parametrize(
    ("ends", "started", "outcome"),
    [
        ([None], 1, 0),
        ([OSError(), OSError(), None], 3, 0),
        ([OSError(), (143, "")], 2, 143),
        ([(2, "the data is not there.")], 1, UserError),
        ([OSError(), (1, "the disk is full.")], 2, FailureError),
        ([OSError()] * 4, 4, FailureError),
    ],
)
def test_what_a_cluster_starts_again(
    ends: list[Any], started: int, outcome: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    fake = Fake(list(ends))
    fake.install(monkeypatch)
    if isinstance(outcome, int):
        assert ray_cluster.launch("modelworks.cli", [], 2, "local") == outcome
    else:
        with pytest.raises(outcome, match=r"the data is|the disk is|workers died 4 times"):
            ray_cluster.launch("modelworks.cli", [], 2, "local")
    assert fake.started == started and fake.down
    with pytest.raises(UserError, match="the cluster at local has 2 cores; ask for 1 to 2"):
        ray_cluster.launch("modelworks.cli", [], 3, "local")


def test_a_worker_tells_its_sentence_to_the_listener(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[int, str]] = []
    monkeypatch.setattr(cluster, "listener", lambda status, sentence: heard.append((status, sentence)))
    assert cluster.tell(UserError("a mistake.")) and heard == [(2, "a mistake.")]
    assert cluster.lost(RuntimeError("gloo: Connection closed by peer")) and len(heard) == 1
