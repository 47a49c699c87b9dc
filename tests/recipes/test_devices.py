"""Several processes for one run: the same losses as one, a killed rank starts again, every mistake is one sentence."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from safetensors.torch import load_file

from modelworks.base.errors import UserError
from modelworks.recipes import launching, schema
from modelworks.recipes.runner import Runner
from modelworks.recipes.stages.train import dealt
from modelworks.train.settings import TrainSettings

from . import tiny

TIMES = {"seconds", "seconds_left", "tokens_per_second", "share_of_peak", "memory", "memory_peak", "energy_wh"}
STEPS = 40
RECIPE = (
    tiny.RECIPE.replace("dropout: 0.1", "dropout: 0.0")
    .replace("steps: 12", f"steps: {STEPS}")
    .replace("evaluate_every: 6", "evaluate_every: 20\n    log_every: 1")
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """The recipe, its documents, and what one process makes of them."""
    folder = tmp_path_factory.mktemp("devices")
    recipe, documents = tiny.write(folder, RECIPE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELWORKS_THREADS", "1")
        Runner(schema.load(str(recipe), [f"data={documents}"]), folder / "one", lambda text: None).run()
    return recipe, documents, folder / "one"


def modelworks(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """`modelworks WORDS` with one thread a process."""
    return tiny.command(*words, **{"MODELWORKS_THREADS": "1", **environment})


def losses(out: Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = (out / "model" / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def close(here: list[dict[str, float]], there: list[dict[str, float]]) -> None:
    """The same curve but for the order of sums, which Muon's products in bfloat16 let grow from step to step."""
    for number, (mine, yours) in enumerate(zip(here, there, strict=True)):
        assert mine == pytest.approx(yours, rel=2e-6 if number == 0 else 3e-2)


def weights(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


@contextlib.contextmanager
def started(*words: object, **environment: str) -> Iterator[subprocess.Popen[str]]:
    line = [sys.executable, "-m", "modelworks", *map(str, words)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MODELWORKS_THREADS": "1", **environment}
    child = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    try:
        yield child
    finally:
        child.kill()
        child.wait()


def ranks(parent: int) -> list[int]:
    """Process ids of the ranks that a launcher has now, rank 0 first."""
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    named = {}
    for pid in listed:
        with contextlib.suppress(OSError):
            values = dict(v.split("=", 1) for v in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in v)
            if "RANK" in values and int(values["MODELWORKS_LAUNCHER"]) == parent:
                named[int(values["RANK"])] = int(pid)
    return [named[key] for key in sorted(named)]


def steps_on_disk(out: Path) -> int:
    return max((int(path.name[5:]) for path in out.glob(".model-*/checkpoints/step-*")), default=0)


def wait_for(step: int, out: Path, child: subprocess.Popen[str]) -> None:
    while steps_on_disk(out) < step:
        assert child.poll() is None, child.stderr.read() if child.stderr else ""
        time.sleep(0.02)


@pytest.mark.timeout(600)
def test_two_devices_one_of_them_killed(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two ranks lose as one does; killed in mid-run, they end with the same curve and bit-identical weights."""
    recipe, documents, one = corpus
    calm = modelworks("run", recipe, "--set", f"data={documents}", "--out", tmp_path / "calm", "--devices", 2)
    assert calm.returncode == 0, calm.stderr
    assert calm.stderr.count("model: done") == 1 and calm.stdout.count("validation loss") == 1  # one rank speaks
    assert json.loads((tmp_path / "calm" / "model" / "artefact.json").read_text())["ranks"] == 2
    close(losses(one), losses(tmp_path / "calm"))
    alone, both = load_file(one / "model" / "model.safetensors"), load_file(tmp_path / "calm/model/model.safetensors")
    assert max((alone[name] - both[name]).abs().max() for name in alone) < 1e-2

    out = tmp_path / "killed"
    with started("run", recipe, "--set", f"data={documents}", "--out", out, "--devices", 2) as child:
        wait_for(STEPS // 4, out, child)
        os.kill(ranks(child.pid)[1], signal.SIGKILL)
        _, said = child.communicate(timeout=500)
    assert child.returncode == 0, said
    assert "; starting again from the newest checkpoint (1 of 3)" in said, said
    assert "Traceback" not in said
    assert losses(out) == losses(tmp_path / "calm")
    assert weights(out) == weights(tmp_path / "calm")


@pytest.mark.small
@pytest.mark.timeout(600)
def test_a_signal_a_lost_launcher_and_another_number_of_ranks(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """SIGTERM saves and ends with 143; ranks do not outlive their launcher; one rank finishes what two began."""
    recipe, documents, one = corpus
    out = tmp_path / "out"
    words = ("run", recipe, "--set", f"data={documents}", "--out", out)
    with started(*words, "--devices", 2) as child:
        wait_for(STEPS // 8, out, child)
        began = time.monotonic()
        child.send_signal(signal.SIGTERM)
        _, said = child.communicate(timeout=300)
    assert child.returncode == 143 and "saved" in said, said
    assert time.monotonic() - began < 25, "the launcher kills what has not saved after 30 s"
    stopped = steps_on_disk(out)
    assert STEPS // 8 <= stopped < STEPS
    with started(*words, "--devices", 2) as child:
        wait_for(stopped + 4, out, child)
        left = ranks(child.pid)
        child.kill()
    end = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in left) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{pid}").exists() for pid in left)
    assert stopped + 4 <= steps_on_disk(out) < STEPS
    alone = modelworks(*words)
    assert alone.returncode == 0, alone.stderr
    close(losses(one), losses(out))


@pytest.mark.small
@pytest.mark.timeout(600)
def test_a_rank_that_hangs(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """A rank that stands still is found by the others' patience, and the group starts again."""
    recipe, documents, one = corpus
    out = tmp_path / "out"
    words = ("run", recipe, "--set", f"data={documents}", "--out", out, "--devices", 2)
    with started(*words, MODELWORKS_TIMEOUT="15", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="2") as child:
        wait_for(STEPS // 4, out, child)
        os.kill(ranks(child.pid)[1], signal.SIGSTOP)
        _, said = child.communicate(timeout=500)
    assert child.returncode == 0 and "starting again from the newest checkpoint (1 of 3)" in said, said
    close(losses(one), losses(out))


@pytest.mark.small
@pytest.mark.timeout(600)
def test_torchrun_and_a_stage_typed_by_hand(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """`torchrun -m modelworks train` is `modelworks train --devices`: the same bits, written and told once."""
    _, _, one = corpus
    words = [
        "train", "causal_lm", "--model.family", "qwen3", "--model.d_model", "32", "--model.n_layers", "2",
        "--model.n_heads", "2", "--model.n_kv_heads", "1", "--model.d_head", "16", "--model.d_ff", "64",
        "--data", str(one / "corpus"), "--tokenizer", str(one / "tokens"), "--max-len", "32", "--rows", "4",
        "--steps", "10", "--dtype", "float32", "--log-every", "1",
    ]  # fmt: skip
    made = modelworks(*words, "--out", tmp_path / "ours", "--devices", 2)
    assert made.returncode == 0, made.stderr
    line = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "modelworks"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MODELWORKS_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    theirs = subprocess.run([*line, *words, "--out", tmp_path / "theirs"], capture_output=True, text=True, env=env)
    assert theirs.returncode == 0, theirs.stderr
    assert theirs.stderr.count("theirs: done") == theirs.stdout.count("parameters") == 1
    files = [tmp_path / name / "model.safetensors" for name in ("ours", "theirs")]
    assert files[0].read_bytes() == files[1].read_bytes()
    typo = modelworks(*words, "--out", tmp_path / "typo", "--stepz", "3", "--devices", 2)
    assert typo.returncode == 2 and "did you mean 'steps'" in typo.stderr


@pytest.mark.small
def test_a_mistake_that_only_a_rank_can_see_is_told_once(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """No restart for what would only happen again, no traceback, the sentence once."""
    _, _, one = corpus
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    words = ["train", "causal_lm", "--model", "qwen3-nano", "--data", one / "corpus", "--tokenizer", one / "tokens"]
    done = modelworks(*words, "--steps", 2, "--rows", 2, "--out", tmp_path / "full", "--devices", 2)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("holds something that modelworks did not make") == 1
    assert "Traceback" not in done.stderr and "starting again" not in done.stderr


def test_more_devices_than_there_are(corpus: tuple[Path, Path, Path]) -> None:
    recipe, documents, _ = corpus
    stages = launching.of_recipe(str(recipe), [f"data={documents}", "stages.model.rows=1000"])
    with pytest.raises(UserError, match=r"--devices 1000: this machine has \d+ \w+; ask for 1 to \d+"):
        launching.start([], 1000, None, stages)
    with pytest.raises(UserError, match="cannot be shared by 3 ranks"):
        launching.start([], 3, None, launching.of_recipe(str(recipe), [f"data={documents}"]))
    assert launching.without(["run", "x", "--devices", "2", "--set", "a=b", "--cluster=auto"]) == [
        "run", "x", "--set", "a=b",
    ]  # fmt: skip


@pytest.mark.parametrize(("rows", "accumulate", "ranks"), [(16, 1, 4), (8, 4, 2), (3, 4, 6), (2, 3, 6), (5, 8, 4)])
def test_the_step_keeps_its_rows(rows: int, accumulate: int, ranks: int) -> None:
    mine = dealt(TrainSettings(steps=1, rows=rows, accumulate=accumulate), ranks)
    assert mine.rows * mine.accumulate * ranks == rows * accumulate and mine.rows <= rows


@pytest.mark.small
def test_ranks_that_disagree_on_data(corpus: tuple[Path, Path, Path], tmp_path: Path) -> None:
    """Two ranks with unequal copies of the data both say so, in a sentence."""
    recipe, _, _ = corpus
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(2):
        place = tmp_path / str(rank)
        (place / "documents").mkdir(parents=True)
        (place / "documents" / "a.txt").write_text("A page of words, and no other.\n" * (3 + rank))
        line = [sys.executable, "-m", "modelworks", "run", str(recipe), "--set", "data=documents", "--out", "out"]
        names = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        env = {**os.environ, **names, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
        children.append(subprocess.Popen(line, cwd=place, env=env, stderr=subprocess.PIPE, text=True))
    said = [child.communicate(timeout=300)[1] for child in children]
    assert [child.returncode for child in children] == [2, 2], said
    assert sum("rank 1 sees something else than rank 0" in text for text in said) == 1  # told once
    assert schema.load(str(recipe), ["data=x"]).head.name == "tiny"


def test_what_is_started_again_and_what_is_not(tmp_path: Path) -> None:
    """The agent's verdict on every kind of end, from the files that ranks leave and the exit statuses."""
    from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

    from modelworks.train.launch import _Agent, _words

    def ended(at: int, code: int, **left: object) -> ProcessFailure:
        path = tmp_path / f"{at}-{code}-{len(left)}.json"
        if left:
            message = {"message": "a sentence", "extraInfo": {"timestamp": "5"}}
            path.write_text(json.dumps({"message": message, **left}))
        return ProcessFailure(local_rank=at, pid=1, exitcode=code, error_file=str(path))

    agent = _Agent.__new__(_Agent)
    lost = {"status": None, "lost": "lost another rank"}
    for failures, status, told in (
        ([ended(0, 1, **lost), ended(1, -9)], None, ""),  # killed: the other one lost it
        ([ended(0, 1, **lost)], None, ""),  # the network
        ([ended(1, 1)], None, ""),  # an error that nobody foresaw
        ([ended(0, -15), ended(1, 1)], None, ""),  # the agent's own signal is no reason to stop
        ([ended(0, 2, status=2), ended(1, -15)], 2, "a sentence"),
        ([ended(0, 1, status=1), ended(1, 1, **lost)], 1, "a sentence"),
        ([ended(0, 143), ended(1, 143)], 143, ""),
        ([ended(0, -15), ended(1, 143)], 143, ""),
        ([ended(0, 130)], 130, ""),
    ):
        found = {failure.local_rank: failure for failure in failures}
        assert (agent.verdict(found), agent.told) == (status, told), found
    assert _words({0: ended(0, 1, **lost), 1: ended(1, -9)}) == "rank 1 was killed (SIGKILL)"
    assert _words({0: ended(0, -15), 1: ended(1, 1)}) == "rank 1 crashed (exit status 1)"
