"""Energy: the joules that this machine's work took, read from its counters where that is allowed, else estimated.

Counters: RAPL (Linux powercap, `energy_uj` of the packages and their memory; it sees all work on the machine) and
NVML (`nvmlDeviceGetTotalEnergyConsumption`, the boards that this process uses). What cannot be read is estimated:
processor seconds of this process times `WATTS_A_CORE`, wall seconds of a board times `WATTS_A_GPU`. Fans, power
supplies and cooling are in neither.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path
from typing import Any

from .distributed import local_ranks, world_size

WATTS_A_CORE = 10.0
"""Of a core that computes: a round guess (server processors state 3 to 12 W a core, laptops 4 to 10)."""
WATTS_A_GPU = 300.0
"""Of a board that does not tell: a round guess."""
POWERCAP = Path("/sys/class/powercap")


class Rapl:
    """The energy counters of the processor packages and their memory."""

    def __init__(self, root: Path = POWERCAP) -> None:
        self.zones: list[tuple[Path, int]] = []
        self.last: list[int] = []
        self.total = 0.0
        try:
            for zone in sorted(root.glob("*-rapl:*")):
                if (zone / "name").read_text().strip().startswith(("package", "dram")):
                    self.zones.append((zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())))
            self.last = [int(path.read_text()) for path, _ in self.zones]
        except (OSError, ValueError):  # since 2020 only root may read them
            self.zones, self.last = [], []

    def joules(self) -> float:
        """Since the beginning. A counter may wrap once between two calls (after about an hour at 70 W)."""
        now = [int(path.read_text()) for path, _ in self.zones]
        for (_, span), before, after in zip(self.zones, self.last, now, strict=True):
            self.total += ((after - before) if after >= before else (after - before + span)) / 1e6
        self.last = now
        return self.total


class Nvml:
    """The energy counter of one NVIDIA board (Volta and later), through the driver's own library."""

    def __init__(self, uuid: str, library: Any = None) -> None:
        self.handle: Any = None
        try:
            self.library = library or ctypes.CDLL("libnvidia-ml.so.1")
            handle = ctypes.c_void_p()
            name = (uuid if uuid.startswith("GPU-") else f"GPU-{uuid}").encode()
            if self.library.nvmlInit_v2() or self.library.nvmlDeviceGetHandleByUUID(name, ctypes.byref(handle)):
                return
            self.handle = handle
            self.first = self._now()
        except (OSError, AttributeError):
            self.handle = None

    def _now(self) -> float:
        value = ctypes.c_ulonglong()
        if self.library.nvmlDeviceGetTotalEnergyConsumption(self.handle, ctypes.byref(value)):
            raise OSError("this board does not tell its energy")
        return value.value / 1e3

    def joules(self) -> float:
        """Since the beginning."""
        return self._now() - self.first


class Meter:
    """Joules since it was made, of all ranks, each rank taken to be like this one, and those `before`."""

    def __init__(self, device: str = "cpu", root: Path = POWERCAP) -> None:
        self.before = 0.0
        """What earlier processes of the same work took."""
        self.rapl = Rapl(root)
        self.board = Nvml(_uuid()) if device == "cuda" else None
        self.device = device
        self.busy, self.began = time.process_time(), time.monotonic()

    def joules(self) -> float:
        """So far."""
        ranks = world_size()
        if self.rapl.zones:
            total = self.rapl.joules() * max(1, ranks // local_ranks())
        else:
            total = (time.process_time() - self.busy) * WATTS_A_CORE * ranks
        if self.board and self.board.handle:
            total += self.board.joules() * ranks
        elif self.device == "cuda":
            total += (time.monotonic() - self.began) * WATTS_A_GPU * ranks
        return self.before + total

    @property
    def how(self) -> str:
        """Where the figure comes from, for people."""
        cpu = "processor and memory read from RAPL, other work on the machine included"
        if not self.rapl.zones:
            cpu = f"processor estimated at {WATTS_A_CORE:.0f} W for each core while it computes (RAPL cannot be read)"
        if self.device != "cuda":
            return cpu
        if self.board and self.board.handle:
            return f"GPU read from NVML; {cpu}"
        return f"GPU estimated at {WATTS_A_GPU:.0f} W (NVML cannot be read); {cpu}"


def _uuid() -> str:
    import torch

    return str(getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", ""))
