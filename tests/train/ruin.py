"""What happens to the disk under a run: damaged checkpoints, no space, and the power cut (see `killer.py`)."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from modelworks.base import files
from modelworks.train import checkpoint

from .killer import SHARED, Trial, ended, forked, newest, result, said

PAGE = 4096
Damage = Callable[[Path, Path, random.Random], None]


def flipped(path: Path, older: Path, dice: random.Random) -> None:
    """One bit somewhere."""
    data = bytearray(path.read_bytes())
    data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
    path.write_bytes(data)


def zeroed(path: Path, older: Path, dice: random.Random) -> None:
    """A page, or what there is of it."""
    data = bytearray(path.read_bytes())
    start = dice.randrange(0, len(data), PAGE)
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    path.write_bytes(data)


def cut(path: Path, older: Path, dice: random.Random) -> None:
    """The end is missing."""
    os.truncate(path, dice.randrange(path.stat().st_size))


def grown(path: Path, older: Path, dice: random.Random) -> None:
    """Something stands behind the end."""
    with open(path, "ab") as file:
        file.write(dice.randbytes(dice.randrange(1, 100)))


def garbage(path: Path, older: Path, dice: random.Random) -> None:
    """A stretch of other bytes."""
    data = bytearray(path.read_bytes())
    start = dice.randrange(len(data))
    data[start : start + 64] = dice.randbytes(len(data[start : start + 64]))
    path.write_bytes(data)


def missing(path: Path, older: Path, dice: random.Random) -> None:
    """Gone."""
    path.unlink()


def swapped(path: Path, older: Path, dice: random.Random) -> None:
    """The same file of the checkpoint before."""
    shutil.copy(older / path.name, path)


def exchanged(path: Path, older: Path, dice: random.Random) -> None:
    """Two files of the checkpoint in each other's place."""
    other = dice.choice([other for other in sorted(path.parent.iterdir()) if other != path])
    mine, its = path.read_bytes(), other.read_bytes()
    path.write_bytes(its)
    other.write_bytes(mine)


DAMAGES: list[Damage] = [
    flipped,
    flipped,
    flipped,
    zeroed,
    zeroed,
    cut,
    cut,
    grown,
    garbage,
    missing,
    swapped,
    exchanged,
]


def damage(trial: Trial) -> None:
    """The newest checkpoint is damaged: it must be told, the one before it taken, and the run end as if nothing was."""
    stems = [_stopped(trial, steps) for steps in ((4, 9), (11, 16), (21, 23))]
    kinds: dict[str, int] = {}
    while not trial.over:
        place = trial.place()
        shutil.copytree(trial.dice.choice(stems), place)
        newer, older = checkpoint.found(place)
        before = _contents(newer)
        kind = trial.dice.choice(DAMAGES)
        kind(trial.dice.choice(sorted(newer.iterdir())), older, trial.dice)
        if _contents(newer) == before:  # the page was zero already, the files equal
            shutil.rmtree(place)
            continue
        trial.tries += 1
        kinds[kind.__name__] = kinds.get(kind.__name__, 0) + 1
        wanted = int(older.name.split("-")[1])
        status = ended(forked(place, trial.plant, save_every=1e9))
        if status:
            trial.blame(place, f"{kind.__name__}: ended with status {status}")
        elif newer.name not in said(place) or SHARED[3] != wanted:
            trial.blame(place, f"{kind.__name__}: not found, or gone back to step {SHARED[3]} and not {wanted}")
        else:
            trial.judge(place)
        shutil.rmtree(place)
    trial.facts = {"kinds": kinds}


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _stopped(trial: Trial, steps: tuple[int, int]) -> Path:
    """A run with checkpoints of these two steps."""
    place = trial.folder / f"stem-{steps[0]}"

    def plant() -> None:
        from modelworks.train.hooks import Save

        call = Save.__call__

        def save(self: Save, run: object, logs: dict[str, float]) -> None:
            self.saver.every = 0.0 if run.step in steps else 1e9  # type: ignore[attr-defined]
            call(self, run, logs)  # type: ignore[arg-type]
            if run.step == steps[1]:  # type: ignore[attr-defined]
                self.saver.wait(run)  # type: ignore[arg-type]
                os._exit(0)

        Save.__call__ = save  # type: ignore[method-assign,assignment]

    assert ended(forked(place, plant)) == 0, said(place)
    assert [newest(place), len(checkpoint.found(place))] == [steps[1], 2]
    return place


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[bool]:
    """A file system of `size` bytes mounted on `folder`; gives False where that is not allowed."""
    folder.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    mounted = shutil.which("mount") is not None and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


def full(trial: Trial) -> None:
    """Space runs out at a random moment, down to a random rest, and comes back: nothing lost, the run goes on.

    On a real file system of 2 MB where mounting is allowed, else writes fail by an injected ENOSPC while a file says
    so. A third of the times the run is killed while there is no space. A try counts when a write failed.
    """
    killed = at_end = windows = 0
    with small_disk(trial.folder / "disk", 2_000_000) as real:
        while not trial.over:
            name = trial.place().name
            place = trial.folder / "disk" / name
            ballast = trial.folder / "disk" / "ballast"
            attempts, reached = 0, -1
            while not result(place) and not (trial.quick and trial.wrong):
                attempts += 1
                plant = trial.plant if real else _refusing(ballast, trial.plant)
                child = forked(place, plant, trial.dice.random() < 0.7, save_every=trial.dice.choice([0, 0, 0.02]))
                while True:
                    time.sleep(trial.dice.uniform(0, 0.3) * trial.whole)
                    seen, windows = len(said(place)), windows + 1
                    _fill(ballast, trial.dice.choice([0, 0, trial.dice.randrange(60_000)]), real)
                    _until(lambda place=place, seen=seen: len(said(place)) > seen or result(place), trial.whole)
                    met = len(said(place)) > seen
                    trial.tries += met
                    at_end += "waiting" in said(place)[seen:]
                    kill = met and trial.dice.random() < 0.33
                    if kill:
                        os.kill(child, signal.SIGKILL)
                        killed += 1
                    elif met:
                        time.sleep(trial.dice.uniform(0, 0.1))
                    ballast.unlink()
                    pid, status = os.waitpid(child, os.WNOHANG) if not kill else os.waitpid(child, 0)
                    if pid:
                        status = os.waitstatus_to_exitcode(status)
                        break
                    if trial.over or trial.dice.random() < 0.2:
                        status = ended(child)
                        break
                now = newest(place)
                if now < reached:
                    trial.blame(place, f"went back from step {reached} to {now}")
                reached = max(now, reached)
                if windows > 20 * (trial.tries + 3):
                    trial.blame(place, "hardly ever notices that there is no space")
                    break
                if status not in (0, -9) and not (status == 1 and "ERROR" in said(place) and newest(place) < 0):
                    trial.blame(place, f"ended with status {status}")
                    break
                if attempts > 100:
                    trial.blame(place, "does not get on")
                    break
            if result(place):
                trial.judge(place)
            shutil.rmtree(place, ignore_errors=True)
    trial.facts = {"killed_while_full": killed, "full_at_the_end": at_end, "real_file_system": real}


def _until(done: Callable[[], object], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not done() and time.monotonic() < end:
        time.sleep(0.002)


def _fill(ballast: Path, room: int, real: bool) -> None:
    """Take all space but `room` bytes."""
    with open(ballast, "wb", buffering=0) as file:
        if not real:
            return
        try:
            while True:
                file.write(bytes(PAGE))
        except OSError:
            file.truncate(max(0, file.tell() - room))


def _refusing(flag: Path, plant: Callable[[], None]) -> Callable[[], None]:
    """Writes of the child fail as on a full disk while `flag` is there."""

    def refuse() -> None:
        import builtins

        write, opened = os.write, builtins.open

        def full_write(handle: int, data: bytes) -> int:
            if flag.exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(handle, data)

        def full_open(path: object, mode: str = "r", *rest: object, **more: object) -> object:
            if "w" in mode and flag.exists():
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            return opened(path, mode, *rest, **more)  # type: ignore[call-overload]

        os.write = full_write  # type: ignore[assignment]
        builtins.open = full_open  # type: ignore[assignment]
        plant()

    return refuse


class Disk:
    """What would be left of a folder if the power went: contents as of the last fsync, of files and of folders.

    Lives in the child, in place of `os.fsync`; its image is a folder of copies by inode, which outlives the child.
    """

    def __init__(self, root: Path, image: Path, cut_at: int) -> None:
        self.root, self.image, self.left = root, image, cut_at
        image.mkdir(parents=True, exist_ok=True)
        for folder in (root, *root.rglob("*")):
            self._keep(folder)

    def fsync(self, handle: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        self.tick()
        if path == self.root or self.root in path.parents:
            self._keep(path)
        self.tick()

    def tick(self) -> None:
        """One more moment at which the power may go."""
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def _keep(self, path: Path) -> None:
        name = self.image / str(path.stat().st_ino)
        if path.is_dir():
            listing = {entry.name: entry.inode() for entry in os.scandir(path)}
            name.with_suffix(".new").write_text(json.dumps(listing))
            os.replace(name.with_suffix(".new"), f"{name}.dir")
        elif path.is_file():
            shutil.copyfile(path, name.with_suffix(".new"))
            os.replace(name.with_suffix(".new"), f"{name}.file")


def after_power_cut(root: Path, image: Path, out: Path, dice: random.Random | None) -> None:
    """Build in `out` what is left of `root`: what was fsynced, and, where dice are given, by chance also what was not."""
    live = {path.stat().st_ino: path for path in (root, *root.rglob("*"))}

    def build(inode: int, to: Path) -> None:
        newer = live.get(inode) if dice and dice.random() < 0.5 else None
        listing = image / f"{inode}.dir"
        if listing.exists() or (inode in live and live[inode].is_dir()):
            to.mkdir()
            entries = json.loads(listing.read_text()) if listing.exists() else {}
            if newer is not None and newer.is_dir():
                entries = {entry.name: entry.inode() for entry in os.scandir(newer)}
            for name, inner in entries.items():
                build(inner, to / name)
        else:
            kept = image / f"{inode}.file"
            data = kept.read_bytes() if kept.exists() else b""
            if dice and newer is not None and newer.is_file() and newer.read_bytes().startswith(data):
                data = newer.read_bytes()[: dice.randint(len(data), newer.stat().st_size)]
            to.write_bytes(data)

    build(root.stat().st_ino, out)


def power(trial: Trial) -> None:
    """The power goes at a random fsync; half of the times all that was not fsynced is lost, else each part by chance.

    What was saved when it went must be there when it comes back, and the run end as if nothing was.
    """
    strict = 0
    while not trial.over:
        place = trial.place()
        reached = -1
        while not result(place) and not (trial.quick and trial.wrong):
            place.mkdir(exist_ok=True)
            image = trial.folder / f"{place.name}.image"
            shutil.rmtree(image, ignore_errors=True)
            last = trial.tries >= trial.count

            def plant(place: Path = place, image: Path = image, at: int = trial.dice.randrange(4, 150)) -> None:
                os.fsync = Disk(place, image, at).fsync  # type: ignore[assignment]
                trial.plant()

            child = forked(place, trial.plant if last else plant, trial.dice.random() < 0.7)
            status = ended(child)
            if status not in (0, -9):
                trial.blame(place, f"ended with status {status}")
                break
            if status == 0:
                break
            trial.tries += 1
            dice = random.Random(trial.dice.random()) if trial.dice.random() < 0.5 else None
            strict += dice is None
            shutil.rmtree(trial.folder / "left", ignore_errors=True)
            after_power_cut(place, image, trial.folder / "left", dice)
            shutil.rmtree(place)
            os.rename(trial.folder / "left", place)
            now = newest(place)
            if now < reached or any(_broken(path) for path in checkpoint.found(place)[:1]):
                trial.blame(place, f"went back from step {reached} to {now}, or its newest checkpoint is broken")
            reached = max(now, reached)
        if result(place):
            trial.judge(place)
    trial.facts = {"all_lost_that_was_not_fsynced": strict}


def _broken(folder: Path) -> bool:
    try:
        files.verify(folder)
    except files.DamagedError:
        return True
    return False
