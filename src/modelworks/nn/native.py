"""The door to kernels.cpp: built by the machine's own C++ compiler at first use, in seconds; else torch does the work.

torch has no single pass for most of what stands between two matrix products, and a small model spends as long there
as in the products. A caller asks `usable` and has the same mathematics in torch beside it. The library stays in the
cache folder under the digest of its source, so it is built once; MODELWORKS_NATIVE=0 leaves it out. It shares torch's
OpenMP runtime and threads: two pools would wait for each other.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from ..base import device, files
from ..base.log import say

SOURCE = Path(__file__).with_name("kernels.cpp")
FLAGS = ["-O3", "-march=native", "-std=c++17", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-fopenmp"]
SUFFIXES = {torch.float32: "_f", torch.bfloat16: "_h"}


def usable(*tensors: Tensor) -> bool:
    """True where kernels can work on these: one format they know, side by side in the processor's memory."""
    dtype = tensors[0].dtype
    return (
        dtype in SUFFIXES
        and not torch.compiler.is_compiling()
        and all(t.dtype == dtype and t.is_contiguous() and t.device.type == "cpu" for t in tensors)
        and library() is not None
    )


def call(name: str, like: Tensor, *arguments: Tensor | int | float | None) -> None:
    """Run a kernel in the format of `like`; tensors go as pointers (None as null), numbers as int64 or float32."""
    loaded = library()
    assert loaded is not None
    function = getattr(loaded, name + SUFFIXES[like.dtype])
    function(*[_plain(argument) for argument in arguments])


def _plain(value: Tensor | int | float | None) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if value is None or isinstance(value, Tensor):
        return ctypes.c_void_p(None if value is None else value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The kernels, built if need be; None (said once) where there is no compiler, no Linux or no wish for them."""
    if os.environ.get("MODELWORKS_NATIVE") == "0":
        return None
    compiler, runtime = shutil.which("g++"), _runtime()
    if compiler is None or runtime is None:
        say("no g++ (or no OpenMP in torch) here: steps take torch's own kernels, which are slower for small models")
        return None
    key = files.digest({"source": SOURCE.read_text(), "flags": FLAGS, "machine": device.machine(), "runtime": runtime})
    path = device.cache() / f"kernels-{key[:16]}.so"
    try:
        if not path.exists():
            _build(compiler, runtime, path)
        return ctypes.CDLL(str(path))
    except (OSError, subprocess.CalledProcessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip().splitlines()[-1:]
        say(f"the kernels could not be built ({' '.join(reason)}): steps take torch's own, slower for small models")
        return None


def _runtime() -> str | None:
    """The OpenMP runtime that torch has loaded."""
    if not sys.platform.startswith("linux"):
        return None
    found = re.search(r"/\S*libgomp\S*\.so\S*", Path("/proc/self/maps").read_text())
    return found[0] if found else None


def _build(compiler: str, runtime: str, path: Path) -> None:
    """Compile and link beside `path`, then rename: another process may be at it too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        half, whole = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        run = functools.partial(subprocess.run, check=True, capture_output=True, text=True)
        run([compiler, *FLAGS, "-c", str(SOURCE), "-o", str(half)])
        run([compiler, "-shared", str(half), runtime, "-o", str(whole)])
        os.replace(whole, path)
