"""Which device and number format to compute in, what the machine can do, and choices remembered for it."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import files
from .errors import UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(name: str = "auto") -> torch.device:
    """'auto' takes the accelerator that is there, else the CPU. Raises UserError for a device that is not there."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError):
        raise UserError(f"device '{name}' is not on this machine; use auto or cpu.") from None
    return torch.device(name)


def set_threads(count: int | None = None) -> int:
    """Set torch's thread count once for this process: one a physical core that we may use. Returns it."""
    wanted = count or int(os.environ.get("MODELWORKS_THREADS", "0")) or len(os.sched_getaffinity(0))
    torch.set_num_threads(wanted)
    return wanted


@functools.cache
def has_fast_bfloat16(device: str = "cpu") -> bool:
    """True where the processor has bfloat16 arithmetic (AVX512-BF16 or AMX on a CPU, compute capability 8 on a GPU)."""
    if device.startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capability = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    if capability:
        return bool(capability.get("avx512_bf16") or capability.get("amx_bf16"))
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def machine() -> dict[str, Any]:
    """The facts that go beside every measured number: processor, cores, memory, device, versions."""
    import importlib.metadata

    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    except OSError:
        pass
    facts: dict[str, Any] = {
        "processor": name,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "bfloat16": has_fast_bfloat16(),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
        "system": platform.system(),
    }
    if torch.cuda.is_available():
        facts["gpu"] = torch.cuda.get_device_name()
    return facts


@functools.cache
def matmul_peak(dtype: torch.dtype = torch.float32, device: str = "cpu", size: int = 1024) -> float:
    """Best measured matrix-multiply speed in FLOP/s (median of five products of `size` square matrices)."""
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    return 2 * size**3 / timed(lambda: left @ right, repeats=5)


def timed(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of `work`, after one warm-up call."""

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    work()
    seconds = []
    for _ in range(repeats):
        wait()
        start = time.perf_counter()
        work()
        wait()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2]


def _memory() -> Path:
    root = os.environ.get("MODELWORKS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "modelworks"
    )
    return Path(root).expanduser() / "choices.json"


def remembered(question: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """The answer that `measure` gave to this question on this machine before, else measure it now and keep it.

    What was measured once stays fixed, so a resumed or repeated run takes the same road as the first one.
    """
    key = files.digest({"question": question, "machine": machine()})
    path = _memory()
    try:
        known = files.read_json(path)
    except Exception:
        known = {}
    if key not in known:
        known[key] = {"question": question, "answer": measure()}
        try:
            files.write_json(path, known)
        except Exception:
            return known[key]["answer"]  # a read-only home only costs the memory of it
    return known[key]["answer"]


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes.

    Linux counts for getrusage what the parent held when it started us; its own status does not.
    """
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if platform.system() == "Darwin" else size * 1024
