"""Energy: counters that wrap, counters that may not be read, boards that tell; each against its own arithmetic."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

import pytest

from modelworks.base import energy


def zone(root: Path, place: str, name: str, joules: float, span: float = 100.0) -> Path:
    """A powercap zone as Linux shows it."""
    folder = root / place
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in (("name", name), ("energy_uj", int(joules * 1e6)), ("max_energy_range_uj", int(span * 1e6))):
        (folder / file).write_text(f"{text}\n")
    return folder


def test_rapl_adds_packages_and_memory_over_a_wrap_and_nothing_twice(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 90.0)
    zone(tmp_path, "intel-rapl:0:0", "core", 5.0)  # a part of the package
    zone(tmp_path, "intel-rapl:0:1", "dram", 1.0)
    zone(tmp_path, "intel-rapl:1", "psys", 7.0)  # holds the package too
    counter = energy.Rapl(tmp_path)
    assert counter.joules() == 0
    zone(tmp_path, "intel-rapl:0", "package-0", 20.0)  # 10 to its end, 20 after
    zone(tmp_path, "intel-rapl:0:0", "core", 99.0)
    zone(tmp_path, "intel-rapl:0:1", "dram", 3.0)
    zone(tmp_path, "intel-rapl:1", "psys", 99.0)
    assert counter.joules() == pytest.approx(32.0)
    assert counter.joules() == pytest.approx(32.0)


def test_without_rapl_it_is_processor_time_and_says_so(tmp_path: Path) -> None:
    meter = energy.Meter(root=tmp_path)
    began = time.process_time()
    while time.process_time() - began < 0.05:
        pass
    time.sleep(0.1)  # waiting costs nothing
    assert 0.5 <= meter.joules() <= 0.05 * energy.WATTS_A_CORE * 1.9
    assert "10 W for each core" in meter.how


def test_an_unreadable_counter_is_an_estimate(tmp_path: Path) -> None:
    (zone(tmp_path, "intel-rapl:0", "package-0", 1.0) / "energy_uj").unlink()
    assert not energy.Rapl(tmp_path).zones


class Board:
    """A driver library that knows one board."""

    def __init__(self, tells: bool = True) -> None:
        self.millijoules, self.tells = 5_000_000, tells

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: bytes, handle: Any) -> int:
        return 0 if name == b"GPU-12" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        ctypes.cast(value, ctypes.POINTER(ctypes.c_ulonglong))[0] = self.millijoules
        return 0 if self.tells else 3


def test_a_board_is_read_in_joules_since_the_beginning() -> None:
    library = Board()
    board = energy.Nvml("12", library)
    library.millijoules += 2500
    assert board.joules() == pytest.approx(2.5)
    assert energy.Nvml("13", library).handle is None
    assert energy.Nvml("12", Board(tells=False)).handle is None
