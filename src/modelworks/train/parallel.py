"""What the ranks of one run tell each other: sums of gradients, agreement on flags, one another's random state."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..base.distributed import world_size

BUCKET = 32 * 2**20  # bytes sent at once: few messages, little extra memory


def sum_gradients(parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its sum over the ranks (each rank divided by the total weight of all of them)."""
    if world_size() == 1:
        return
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:  # a rank whose batch did not touch it still has to answer the others
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.nbytes
        if size >= BUCKET:
            _sum_bucket(bucket)
            bucket, size = [], 0
    if bucket:
        _sum_bucket(bucket)


def _sum_bucket(bucket: list[Tensor]) -> None:
    flat = torch.cat([tensor.flatten() for tensor in bucket])
    dist.all_reduce(flat)
    parts = flat.split([tensor.numel() for tensor in bucket])
    torch._foreach_copy_(bucket, [part.view_as(tensor) for part, tensor in zip(parts, bucket, strict=True)])


def sum_tensor(tensor: Tensor) -> Tensor:
    """`tensor` summed over the ranks, in place."""
    if world_size() > 1:
        dist.all_reduce(tensor)
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
    data = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    longest = largest(len(data))[0]
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    padded = torch.cat([data, data.new_zeros(longest - len(data))])
    texts = [torch.empty_like(padded) for _ in range(world_size())]
    dist.all_gather(texts, padded)
    return [bytes(t[: int(n)].tolist()).decode() for t, n in zip(texts, lengths, strict=True)]
