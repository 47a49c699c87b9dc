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
from .distributed import local_ranks
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
    """Set torch's thread count for this process: its share of the cores that we may use. Returns it.

    Ranks on one machine share its cores evenly; MODELWORKS_THREADS says how many threads each process gets.
    """
    cores = max(1, len(os.sched_getaffinity(0)) // local_ranks())
    wanted = count or int(os.environ.get("MODELWORKS_THREADS", "0")) or cores
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


def cache() -> Path:
    """Where this machine's choices and builds are kept: MODELWORKS_CACHE, else a folder in the user's cache."""
    root = os.environ.get("MODELWORKS_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME", "~/.cache"), "modelworks"
    )
    return Path(root).expanduser()


def remembered(question: dict[str, Any], measure: Callable[[], Any]) -> Any:
    """The answer that `measure` gave to this question on this machine before, else measure it now and keep it.

    What was measured once stays fixed, so a resumed or repeated run takes the same road as the first one.
    """
    key = files.digest({"question": question, "machine": machine()})
    path = cache() / "choices.json"
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


def memory(device: str = "cpu") -> tuple[int, int]:
    """Bytes held now and at most so far: of this process on a CPU, of its tensors on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.memory_allocated(), torch.cuda.max_memory_allocated()
    with contextlib.suppress(OSError, ValueError):
        lines = Path("/proc/self/status").read_text().splitlines()
        sizes = {line[:6]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
        return sizes["VmRSS:"], sizes["VmHWM:"]
    return peak_memory(), peak_memory()


def free_memory(device: str = "cpu") -> int | None:
    """Bytes that this process can still have: on a GPU, or of this machine's memory and swap; None where unknown.

    The least of what the system has, what a control group (a container, a Slurm job) leaves and what `ulimit -v` does.
    """
    if device.startswith("cuda"):
        free, _ = torch.cuda.mem_get_info()
        return free + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
    found: list[int] = []
    with contextlib.suppress(OSError, ValueError):
        lines = (line.split() for line in Path("/proc/meminfo").read_text().splitlines())
        facts = {words[0]: int(words[1]) * 1024 for words in lines if len(words) > 1}
        found.append(facts["MemAvailable:"] + facts.get("SwapFree:", 0))
    with contextlib.suppress(OSError, ValueError):
        found += _left_by_control_groups()
    with contextlib.suppress(OSError, ValueError, ImportError):
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            found.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(found)) if found else None


def _left_by_control_groups() -> list[int]:
    """What each memory limit above this process (cgroup v2 or v1) leaves; caches of files count as free."""
    own = {tuple(line.split(":", 2)[1:]) for line in Path("/proc/self/cgroup").read_text().splitlines()}
    left = []
    for controllers, place in own:
        if controllers not in ("", "memory"):
            continue
        root = Path("/sys/fs/cgroup") / controllers
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        folder = root / place.strip("/")
        for step in (folder, *folder.parents):
            if not step.is_relative_to(root):
                break
            with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
                limit, used = (int((step / name).read_text()) for name in names)
                stat = dict(line.split() for line in (step / "memory.stat").read_text().splitlines())
                left.append(limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    return left
