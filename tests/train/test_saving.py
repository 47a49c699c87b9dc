"""Saving beside training: the same files as in line, errors that reach the loop, a disk that is full for a while."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from modelworks.base import files
from modelworks.base.errors import DamagedError, FailureError
from modelworks.train import checkpoint, saving, stored
from modelworks.train.hooks import Save
from modelworks.train.loop import train
from modelworks.train.run import Run, start
from modelworks.train.settings import TrainSettings
from modelworks.train.trackers import TensorBoard

from .ruin import small_disk
from .test_checkpoint import Do
from .toys import Next, build

SETTINGS = TrainSettings(steps=12, ema=0.9, save_every=0, log_every=2, dtype="float32", track=[])


def begin(folder: Path, said: list[str], do: Any = None, **more: Any) -> Run:
    run = start(build(dropout=0.2), Next(), SETTINGS.model_copy(update=more), folder, log=said.append, plan=False)
    if do:
        run.hooks.insert(-1, Do(do))
    return run


@pytest.fixture(autouse=True)
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "IN_LINE", 0.0)
    monkeypatch.setattr(saving, "NOTICE", 0.0)


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_beside_training_is_in_line_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bytes in every file, though the loop goes on while they are written."""
    written: dict[str, dict[str, bytes]] = {}
    seal, by = files.seal, set()

    def keep(work: Path, known: Any = None) -> Any:
        by.add(threading.current_thread().name)
        for path in sorted(work.iterdir()):
            data = path.read_bytes()
            if path.name == "state.json":
                state = json.loads(data)
                state["seconds"] = state["hooks"]["Log"] = state["trackers"] = None  # times, and how long they are
                data = json.dumps(state).encode()
            written.setdefault(name, {})[f"{work.name.split('.')[1]}/{path.name}"] = data
        return seal(work, known)

    monkeypatch.setattr(files, "seal", keep)
    for name, limit in (("beside", 0.0), ("in line", 1e9)):
        monkeypatch.setattr(saving, "IN_LINE", limit)
        train(begin(tmp_path / name, []))
    assert by == {"checkpoint", "MainThread"}
    assert written["beside"] == written["in line"] and len(written["beside"]) == 4 * 12


def test_what_goes_wrong_in_the_writer_reaches_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug at the next step; a full disk as a sentence, and training goes on; with space it says so."""
    store, said, failed = checkpoint.store, [], []

    def fail(taken: checkpoint.Snapshot) -> Path:
        if 3 <= taken.step <= 5:
            failed.append(taken.step)
            with files.disk_errors(taken.final):
                raise full()
        if taken.step == 9:
            raise ZeroDivisionError("a bug")
        return store(taken)

    monkeypatch.setattr(checkpoint, "store", fail)
    run = begin(tmp_path, said)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        train(run)
    assert run.step == 10 and failed == [3, 4, 5]
    told = [text for text in said if "could not be written (No space left on device)" in text]
    assert len(told) == 3 and "step-000000002 stands: make room" in told[0]
    assert sum("checkpoints are written again" in text for text in said) == 1


def test_the_end_waits_for_space_and_then_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, said, left = checkpoint.store, [], [3]

    def fail(taken: checkpoint.Snapshot) -> Path:
        if taken.step == 12 and left[0]:
            left[0] -= 1
            with files.disk_errors(taken.final):
                raise full()
        return store(taken)

    monkeypatch.setattr(checkpoint, "store", fail)
    monkeypatch.setattr(saving.time, "sleep", lambda seconds: None)
    train(begin(tmp_path / "waits", said))
    assert left == [0] and checkpoint.found(tmp_path / "waits")[0].name == "step-000000012"
    assert any("waiting 9 min" in text or "waiting 10 min" in text for text in said)
    left[0] = 10**9
    monkeypatch.setattr("modelworks.train.hooks.PATIENCE", 0.01)
    with pytest.raises(
        FailureError, match=r"step 12 could not be written .*No space left.*step-000000011 stands: make"
    ):
        train(begin(tmp_path / "fails", said))


def test_without_memory_for_a_copy_it_is_done_in_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, by = checkpoint.store, set()
    monkeypatch.setattr(saving, "spare", lambda: 1000)
    monkeypatch.setattr(checkpoint, "store", lambda taken: (by.add(threading.current_thread().name), store(taken))[1])
    train(begin(tmp_path, []))
    assert by == {"MainThread"}


def test_a_save_may_be_waited_for_and_costs_what_it_says(tmp_path: Path) -> None:
    run = begin(tmp_path, [], save_every=1e9)
    save = run.hooks[-1]
    assert isinstance(save, Save) and not save.saver.due
    save.saver.save(run)
    save.settle(run)
    assert [path.name for path in checkpoint.found(tmp_path)] == ["step-000000000"]
    assert 0 < save.saver.stall <= save.saver.cost < 10 and 0 < save.share < 1
    run.closing.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_tensorboard_on_a_full_disk(tmp_path: Path) -> None:
    """Its curves are whole in the end, and nothing is raised meanwhile."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with small_disk(tmp_path / "disk", 200_000) as real:
        if not real:
            pytest.skip("file systems may not be mounted here")
        tracker, ballast = TensorBoard(tmp_path / "disk" / "curves"), tmp_path / "disk" / "ballast"
        for step in range(30):
            if step == 10:
                with pytest.raises(OSError, match="No space"), open(ballast, "wb", buffering=0) as file:
                    while True:
                        file.write(bytes(4096))
            if step == 20:
                ballast.unlink()
            tracker._flushed = 0.0  # every record at once, as if seconds lay between
            tracker.write(step, {f"value {number}": float(step) for number in range(40)})
            assert bool(tracker.trouble) == (12 <= step < 20) or 10 <= step < 12
        tracker.close()
        seen: set[int] = set()
        for path in (tmp_path / "disk" / "curves").glob("events*"):
            events = EventAccumulator(str(path)).Reload()
            if "value 39" in events.Tags()["scalars"]:
                seen |= {event.step for event in events.Scalars("value 39")}
    assert seen == set(range(30))


def test_tensors_are_read_by_the_library(tmp_path: Path) -> None:
    """Every number format, scalars, nothing at all, views that are not contiguous; and the hash is the file's."""
    tensors = {str(dtype): torch.arange(6).view(2, 3).to(dtype) for dtype in stored.NAMES if "float8" not in str(dtype)}
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.zeros(0, 3), "turned": torch.randn(4, 3).T}
    tensors |= {"ä ÿ\n": torch.ones(1, dtype=torch.bool), "eight": torch.ones(3).to(torch.float8_e4m3fn)}
    digest = stored.write_tensors(tmp_path / "x.safetensors", tensors)
    assert digest == files.sha256(tmp_path / "x.safetensors")
    read = load_file(tmp_path / "x.safetensors")
    assert set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and torch.equal(read[name].float(), tensor.float())
    with pytest.raises(TypeError, match="complex"):
        stored.write_tensors(tmp_path / "y.safetensors", {"c": torch.ones(1, dtype=torch.complex64)})


def test_any_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    with files.new_directory(tmp_path / "d") as work:
        (work / "a").write_text("some")
    path = tmp_path / "d" / files.MANIFEST
    data = path.read_bytes()
    for bit in range(0, 8 * len(data), 3):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(DamagedError):
            files.verify(tmp_path / "d")
