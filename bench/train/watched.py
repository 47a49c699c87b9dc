"""A process watched from outside: how long it took, and the most memory that it and its children held at once.

Linux tells both under /proc, looked at twenty times a second: the process's own resident size, and of each of its
children (compilers, workers) what is not a file's, since files and libraries are shared with their parent.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

EVERY = 0.05  # seconds between two looks: 0.1 ms of work each


@dataclass
class Watched:
    """What was seen of a process that ended well."""

    seconds: float
    peak_bytes: int
    peak_alone_bytes: int
    """The largest resident size of the process without its children."""
    children: int
    """The most children that it had at once."""
    sizes: list[tuple[float, int]]
    """(time.monotonic(), bytes) of each look."""

    def peak_between(self, start: float, end: float) -> int:
        """The most bytes from one moment to another; 0 where no look falls between them."""
        return max((size for when, size in self.sizes if start <= when <= end), default=0)


def run(command: list[str], log: Path, environment: dict[str, str], limit: float) -> Watched:
    """Run a command to its end; output goes to `log`. Raises SystemExit with the end of it when the command fails."""
    start = time.monotonic()
    alone = most = 0
    sizes = []
    with open(log, "w", encoding="utf-8") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=os.environ | environment)
        while process.poll() is None:
            size = _kilobytes(process.pid, "VmRSS", "VmHWM")
            below = _descendants(process.pid)
            held = size[0] + sum(sum(_kilobytes(pid, "RssAnon", "RssShmem")) for pid in below)
            sizes.append((time.monotonic(), 1024 * held))
            alone, most = max(alone, size[1]), max(most, len(below))
            if time.monotonic() - start > limit:
                process.kill()
            time.sleep(EVERY)
    took = time.monotonic() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text(encoding='utf-8', errors='replace')[-3000:]}")
    peak = max((size for _, size in sizes), default=0)
    return Watched(took, max(peak, 1024 * alone), 1024 * alone, most, sizes)


def _kilobytes(pid: int, *names: str) -> list[int]:
    """Some sizes of /proc/PID/status, 0 where the process is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return [0] * len(names)
    found = {line.split(":")[0]: line.split() for line in text.splitlines()}
    return [int(found[name][1]) if name in found else 0 for name in names]


def _descendants(pid: int) -> list[int]:
    """The process's children, theirs, and so on, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(word) for word in path.read_text(encoding="utf-8").split()]
        except OSError:
            continue
    return found + [below for child in found for below in _descendants(child)]
