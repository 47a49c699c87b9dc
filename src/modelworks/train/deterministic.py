"""Deterministic mode: torch is held to operations that give the same bits every time, and it is said.

On a processor every operation that we use does so already, for one number of threads: sums are split among threads,
so another number rounds in another order (steps.jsonl says with how many a run was taken).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from .run import Run
    from .settings import TrainSettings

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
SIZE = ":4096:8"  # one of the two with which cuBLAS promises equal bits (NVIDIA, cuBLAS library, section 2.1.4)


def settled(settings: TrainSettings) -> TrainSettings:
    """The settings with nothing left to measurements, which may fall out another way: dtype auto is float32."""
    return settings.model_copy(update={"tune": "off", "dtype": settings.dtype.replace("auto", "float32")})


@contextlib.contextmanager
def required(run: Run) -> Iterator[None]:
    """Inside the block an operation that cannot do it raises torch's own error, which names it."""
    os.environ.setdefault(WORKSPACE, SIZE)  # read when the first product on a GPU is asked for
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    place = f"a {torch.cuda.get_device_name()}" if run.device.type == "cuda" else "this kind of processor"
    run.log(f"deterministic: the same run gives the same bits again, on {place} with as many threads.")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
