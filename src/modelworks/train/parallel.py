"""What the ranks of one run tell each other: sums of gradients, agreement on flags, one another's random state."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from ..base.distributed import copies, world_size

if TYPE_CHECKING:
    from .optim import Optimizer
    from .sharded import Shards

BUCKET = 32 * 2**20  # bytes sent at once: few messages, little extra memory


def sum_gradients(optimizer: Optimizer, shards: Shards | None = None) -> Tensor:
    """Replace every gradient by its sum over the ranks (each divided by the total weight of all); returns its norm."""
    parameters = optimizer.parameters
    if shards is not None:
        shards.collect(optimizer.own)
        return shards.norm(parameters)
    if world_size() > 1:
        for parameter in parameters:
            if parameter.grad is None:  # a rank whose batch did not touch it still has to answer the others
                parameter.grad = torch.zeros_like(parameter)
        sum_tensors([p.grad for p in parameters if p.grad is not None])
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])


def sum_tensors(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Each tensor summed over the ranks of `group` (all of them), in place, many in one message."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        bucket.append(tensor)
        size += tensor.nbytes
        if size >= BUCKET:
            _sum_bucket(bucket, group)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket, group)


def _sum_bucket(bucket: list[Tensor], group: dist.ProcessGroup | None) -> None:
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat, group=group)
    parts = flat.split([tensor.numel() for tensor in bucket])
    torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


def sum_tensor(tensor: Tensor) -> Tensor:
    """`tensor` summed over the parts of the data, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
        if copies() > 1:
            tensor /= copies()
    return tensor


def largest(*values: int) -> list[int]:
    """The largest of each value over the ranks: how they agree that one of them was told to stop or to save."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values)
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor.tolist()]


def gather_text(text: str) -> list[str]:
    """Every rank's text, in rank order, on every rank."""
    if world_size() == 1:
        return [text]
    data = torch.tensor(list(text.encode()), dtype=torch.uint8)
    longest = largest(len(data))[0]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    padded = torch.cat([data, data.new_zeros(longest - len(data))])
    texts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(texts, padded)
    return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(texts, lengths, strict=True)]
