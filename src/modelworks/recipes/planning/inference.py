"""What generating costs: weights and KV cache, time to the first token and between tokens, how many devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ...nn import arithmetic
from ...nn.arithmetic import Shape
from .hardware import Device

QUANTS = {"none": 2.0, "bf16": 2.0, "fp8": 1.0, "int8": 1.0 + 2 / 128, "int4": 0.5 + 2 / 128, "nf4": 0.5 + 0.127 / 8}
"""Bytes a matrix parameter: the numbers, and scales of 2 bytes a group of 128 (nf4: 0.127 bits, Dettmers et al. 2023).
Tables, norms and biases keep 2 bytes."""
MEMORY_REACH = 0.75
"""Share of the stated memory bandwidth that reading weights and a cache keeps up: a round guess."""
RESERVED = 1.5e9
HOP = 10e-6
"""Seconds that one message between devices of a node takes at least: a round guess."""
ROOM = 0.95
"""Share of a device's memory that may be planned for."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A batch on `devices`: `replicas` groups of tensor ranks, each with its part of the batch.

    Bytes on each device, seconds to read the prompts and for a token of each text, and what binds both.
    """

    devices: int
    replicas: int
    weights: float
    cache: float
    reserved: float
    prefill: float
    prefill_bound: str
    decode: float
    decode_bound: str
    fits: bool

    @property
    def total(self) -> float:
        return self.weights + self.cache + self.reserved


def weight_bytes(shape: Shape, quant: str = "none") -> float:
    """Bytes of the weights: matrices of the blocks in the format of `quant`, all else in 2 bytes."""
    matrices = sum(s.n_layers * arithmetic.layer_matrices(s) for s in (shape, *shape.also))
    return QUANTS[quant] * matrices + 2 * (arithmetic.parameters(shape) - matrices)


def serve(shape: Shape, device: Device, batch: int, context: int, quant: str, devices: int) -> Serving:
    """`batch` texts of `context` tokens: the prompt is all of them but one, then one token at a time.

    The devices are cut into replicas as far as each holds its part, the fastest way taken.
    """
    ways = [
        _group(shape, device, batch, context, quant, devices, replicas)
        for replicas in range(1, min(devices, batch) + 1)
        if devices % replicas == 0
    ]
    fitting = [way for way in ways if way.fits]
    return min(fitting, key=lambda way: way.decode) if fitting else min(ways, key=lambda way: way.total)


def _group(shape: Shape, device: Device, batch: int, context: int, quant: str, devices: int, replicas: int) -> Serving:
    """Each phase takes what its products or its reading takes, whichever is longer (roofline, Williams et al. 2009),
    and two messages a block where there are several tensor ranks."""
    width, cache_width = QUANTS[quant], 2
    ranks, batch = devices // replicas, -(-batch // replicas)
    weights = weight_bytes(shape, quant) / ranks
    shared = min(ranks, shape.n_kv_heads)
    cache = arithmetic.kv_bytes(shape, context, batch, cache_width, rolling=True) / shared
    flops = device.flops8 if quant in ("fp8", "int8") else device.flops
    rate = flops * device.reach * ranks
    reading = device.bandwidth * MEMORY_REACH
    layers = shape.n_layers + sum(s.n_layers for s in shape.also)

    def messages(tokens: int) -> float:
        if ranks == 1:
            return 0.0
        size = 2 * tokens * shape.d_model * 2 * (ranks - 1) / ranks
        return 2 * layers * (HOP + size / (device.link if ranks <= device.node else device.network))

    work = batch * context * arithmetic.forward_flops(shape, context) / rate
    work -= 2 * batch * (context - 1) * shape.vocab_size * shape.d_model / rate  # only the last place is read out
    read = weights / reading
    prefill = max(work, read) + messages(batch * context)
    step_work = batch * arithmetic.decode_flops(shape, context) / rate
    touched = read * _touched(shape, batch, width, weight_bytes(shape, quant))
    step_read = touched + cache / reading
    decode = max(step_work, step_read) + messages(batch)
    return Serving(
        devices=devices, replicas=replicas, weights=weights, cache=cache, reserved=RESERVED, prefill=prefill,
        prefill_bound="products" if work > read else "memory", decode=decode,
        decode_bound="products" if step_work > step_read else "memory",
        fits=weights + cache + RESERVED <= ROOM * device.memory,
    )  # fmt: skip


def _touched(shape: Shape, batch: int, width: float, whole: float) -> float:
    """Share of the weights that a step of `batch` tokens reads: with experts, of those that some token chose."""
    if not shape.n_experts:
        return 1.0
    experts = shape.n_layers * shape.n_experts * shape.feedforward_matrices * shape.d_model * shape.d_ff * width
    chosen = 1 - (1 - shape.n_active / shape.n_experts) ** batch
    return 1 - experts * (1 - chosen) / whole


def fewest(shape: Shape, device: Device, batch: int, context: int, quant: str) -> Serving:
    """The fewest devices (1, 2, 4, ...) that hold it; where 64 do not, the 64."""
    for power in range(7):
        if (found := serve(shape, device, batch, context, quant, 2**power)).fits:
            return found
    return found


def largest_batch(shape: Shape, device: Device, context: int, quant: str, serving: Serving) -> int:
    """Texts of `context` tokens that fit beside the weights on the devices of `serving`."""
    ranks = serving.devices // serving.replicas
    room = ROOM * device.memory - RESERVED - serving.weights
    one = arithmetic.kv_bytes(shape, context, 1, 2, rolling=True) / min(ranks, shape.n_kv_heads)
    return serving.replicas * max(0, math.floor(room / one)) if one else 0
