"""Facts about the processes that train together; one process is the plain case and needs no set-up."""

from __future__ import annotations

import torch
import torch.distributed as dist


def _on() -> bool:
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Number of this process, 0 when alone."""
    return dist.get_rank() if _on() else 0


def world_size() -> int:
    """How many processes train together, 1 when alone."""
    return dist.get_world_size() if _on() else 1


def is_main() -> bool:
    """True for the one process that prints and writes."""
    return rank() == 0


def all_reduce_sum(value: float) -> float:
    """The sum of `value` over all ranks, in float64 so that counts stay exact up to 2**53."""
    if not _on():
        return value
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor)
    return float(tensor.item())


def barrier() -> None:
    """Wait for every rank."""
    if _on():
        dist.barrier()
