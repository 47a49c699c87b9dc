"""The storage layer: the old state or the new one, never a mixture; damage is found; a full disk loses nothing."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from modelworks.base import files
from modelworks.base.errors import DamagedError, UserError


def fill(folder: Path, mark: str) -> None:
    for name in ("a.bin", "deep/b.bin"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes((mark * 5000).encode())


def made(path: Path, mark: str) -> Path:
    with files.new_directory(path) as work:
        fill(work, mark)
    return path


def test_a_directory_appears_complete_and_is_replaced_whole(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "1")
    assert files.verify(folder)["files"].keys() == {"a.bin", "deep/b.bin"}
    (folder / "stale").write_text("left by hand")
    made(folder, "2")
    assert (folder / "a.bin").read_bytes()[:1] == b"2" and not (folder / "stale").exists()
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_a_failure_leaves_the_old_directory(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "1")
    with pytest.raises(RuntimeError), files.new_directory(folder) as work:
        fill(work, "2")
        raise RuntimeError
    files.verify(folder)
    assert (folder / "a.bin").read_bytes()[:1] == b"1" and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("harm", ["flip", "zero a page", "cut", "remove", "edit the manifest"])
def test_damage_is_found_and_named(tmp_path: Path, harm: str) -> None:
    folder = made(tmp_path / "x", "1")
    path = folder / ("manifest.json" if "manifest" in harm else "deep/b.bin")
    data = bytearray(path.read_bytes())
    if harm == "flip":
        data[random.Random(1).randrange(len(data))] ^= 4
    elif harm == "zero a page":
        data[:4096] = bytes(4096)
    elif harm == "edit the manifest":
        data = bytearray(data.replace(b'"bytes": 5000', b'"bytes": 5001', 1))
    path.write_bytes(data[:-1] if harm == "cut" else data)
    if harm == "remove":
        path.unlink()
    with pytest.raises(DamagedError, match="x" if "manifest" in harm else "b.bin"):
        files.verify(folder)


WRITER = """
import sys
from pathlib import Path
from modelworks.base import files
here, n = Path(sys.argv[1]), 0
with files.lock(here):
    files.sweep(here)
    while True:
        n += 1
        with files.new_directory(here / "x") as work:
            for name in ("a", "b", "c"):
                (work / name).write_text(str(n) * 2000)
        files.write_json(here / "count.json", {"n": n})
"""


def test_kill_at_any_moment_leaves_a_whole_state(tmp_path: Path) -> None:
    rng, seen = random.Random(7), set()
    for _ in range(8):
        child = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=0.4 + rng.random() * 0.3)
        child.send_signal(signal.SIGKILL)
        child.wait()
        with files.lock(tmp_path):
            files.sweep(tmp_path)
        if (tmp_path / "x").exists():
            files.verify(tmp_path / "x")
            texts = {(tmp_path / "x" / name).read_text() for name in "abc"}
            assert len(texts) == 1
            seen |= texts
        assert not [p for p in tmp_path.iterdir() if p.name.endswith(files.PARTIAL)]
        if (tmp_path / "count.json").exists():
            assert files.read_json(tmp_path / "count.json")["n"] > 0
    assert seen, "no child came far enough to write anything: the test proved nothing"


def test_a_kill_between_the_two_renames_is_mended(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "1")
    os.rename(folder, tmp_path / f".x.0123abcd.old{files.PARTIAL}")
    files.sweep(tmp_path)
    files.verify(folder)


def test_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    folder = made(tmp_path / "x", "1")
    files.write_text(tmp_path / "note", "old")
    script = f"""
        import resource, signal
        from pathlib import Path
        from modelworks.base import files
        from modelworks.base.errors import FailureError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, 3000))
        here = Path({str(tmp_path)!r})
        for job in ("note", "x"):
            try:
                if job == "note":
                    files.write_text(here / "note", "n" * 9000)
                else:
                    with files.new_directory(here / "x") as work:
                        (work / "a.bin").write_bytes(b"2" * 9000)
                raise SystemExit("nothing was refused")
            except FailureError as error:
                assert "disk is full" in str(error) and job in str(error), error
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "note").read_text() == "old"
    files.verify(folder)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["note", "x"]
    made(folder, "3")  # and it goes on once there is room
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 3000


def test_only_one_process_works_in_a_folder(tmp_path: Path) -> None:
    with files.lock(tmp_path), pytest.raises(UserError, match="another modelworks process"), files.lock(tmp_path):
        pass
    with files.lock(tmp_path):
        pass


def test_point_replaces_a_link_and_never_a_folder(tmp_path: Path) -> None:
    one, two = made(tmp_path / "one", "1"), made(tmp_path / "two", "2")
    files.point(tmp_path / "newest", one)
    files.point(tmp_path / "newest", two)
    assert (tmp_path / "newest").resolve() == two.resolve() and os.readlink(tmp_path / "newest") == "two"
    with pytest.raises(UserError, match="in the way"):
        files.point(one, two)


def test_json_that_was_cut_is_damage(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(DamagedError, match=r"x\.json"):
        files.read_json(tmp_path / "x.json")


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert files.digest({"a": 1, "b": [1, 2]}) == files.digest({"b": [1, 2], "a": 1})
    assert files.digest({"a": 1}) != files.digest({"a": 1.5})


def test_json_keeps_half_a_surrogate(tmp_path: Path) -> None:
    """Names of files that are no UTF-8 reach us so."""
    files.write_json(tmp_path / "x.json", {"name": "caf\udce9 \ud800", "汉": "字"})
    assert files.read_json(tmp_path / "x.json") == {"name": "caf\udce9 \ud800", "汉": "字"}
    assert "汉" in (tmp_path / "x.json").read_text()
