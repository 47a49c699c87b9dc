"""Facts about the processes that train together; one process is the plain case and needs no set-up."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

_by_itself = False
_copies = 1


def _on() -> bool:
    return not _by_itself and dist.is_available() and dist.is_initialized()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Inside the block this process counts as the only one: the others wait, and must not be waited for."""
    global _by_itself
    before, _by_itself = _by_itself, True
    try:
        yield
    finally:
        _by_itself = before


def local_ranks() -> int:
    """How many of the processes that train together are on this machine (LOCAL_WORLD_SIZE), 1 when alone."""
    return max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1"))) if _on() else 1


def rank() -> int:
    """Number of this process, 0 when alone."""
    return dist.get_rank() if _on() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if _on() else 1


def divide(copies: int) -> None:
    """Say that each row of data is worked on by so many ranks, which stand side by side (tensor, context parallel)."""
    global _copies
    _copies = copies


def copies() -> int:
    """How many ranks work on the same rows together."""
    return _copies if _on() else 1


def share() -> int:
    """Which part of the data this process works on, 0 when alone."""
    return rank() // copies()


def shares() -> int:
    """Into how many parts the data is divided, 1 when alone."""
    return world_size() // copies()


def is_main() -> bool:
    """True for the one process that prints and writes."""
    return rank() == 0


def all_reduce_sum(value: float) -> float:
    """The sum of `value` over the parts of the data, in float64 so that counts stay exact up to 2**53."""
    if not _on():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return float(tensor.item()) / copies()


def barrier() -> None:
    """Wait for every rank."""
    if _on():
        dist.barrier()
