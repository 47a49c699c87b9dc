"""What a person sees while something takes long: a panel in a terminal, sparse lines elsewhere, nothing when quiet."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from modelworks.base import log, panel

CODE = """
import time
from modelworks.base.log import progress, say
with progress("train", 365, "steps", 10) as bar:
    bar.advance(90, "loss 2.182, memory 0.58 GB", 3.0)
    time.sleep(0.7)
    say("a word in between")
    with progress("scoring", 10, "pairs") as inner:
        inner.advance(5)
    time.sleep(0.7)
print("after")
"""


def in_terminal(**environment: str) -> str:
    """What a terminal of 100 columns is sent."""
    import fcntl
    import pty
    import struct
    import termios

    clean = {name: value for name, value in os.environ.items() if name not in ("CI", "MODELWORKS_QUIET")}
    parent, child = pty.openpty()
    fcntl.ioctl(child, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", CODE],
        stdin=child,
        stdout=child,
        stderr=child,
        env=clean | {"TERM": "xterm"} | environment,
    )
    os.close(child)
    out = b""
    while True:
        try:
            part = os.read(parent, 65536)
        except OSError:
            break
        if not part:
            break
        out += part
    assert process.wait() == 0
    return out.decode()


def test_a_terminal_shows_one_live_panel() -> None:
    sent = in_terminal()
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", sent)
    assert "27%" in plain and "100/365 steps" in plain and "loss 2.182, memory 0.58 GB" in plain
    left = [float(seconds) for seconds in re.findall(r"([\d.]+) s left", plain)]
    assert 3.0 >= left[0] > left[-1] > 0 and left == sorted(left, reverse=True)  # counts down by itself
    assert "a word in between" in plain and "scoring" not in plain  # one panel at a time
    assert "\x1b[2K" in sent and plain.rstrip().endswith("after")


def test_quiet_is_quiet() -> None:
    assert in_terminal(MODELWORKS_QUIET="1").split() == "a word in between after".split()


def test_elsewhere_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("MODELWORKS_QUIET", raising=False)
    monkeypatch.setattr(log, "PAUSE", 0.0)
    with log.progress("train", 400, "steps") as bar:
        bar.advance(100, "loss 1.5", 75.0)
        bar.advance(100)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "train: 100/400 steps, loss 1.5, 75 s left"
    assert re.fullmatch(r"train: 200/400 steps, [\d,]+/s, [\d.]+ s left", second)
    monkeypatch.setenv("MODELWORKS_QUIET", "1")
    with log.progress("train", 400, "steps") as bar:
        bar.advance(100, "loss 1.5", 75.0)
    assert not capsys.readouterr().err


def test_a_panel_without_an_end_tells_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    shown = panel.Panel("collect", None, "documents", 0)
    shown.started -= 10
    shown.advance(1000)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(shown)
    assert re.fullmatch(r"collect 1,000 documents (100|99) documents/s\s*", captured.get())
