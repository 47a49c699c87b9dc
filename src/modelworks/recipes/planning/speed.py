"""How long a training step takes under a layout: products, memory traffic, bubbles, and messages that nothing hides."""

from __future__ import annotations

from dataclasses import dataclass

from ...nn import arithmetic
from ...nn.arithmetic import Shape
from .hardware import Device
from .layouts import KEPT, Layout, local_parameters, per_layer, pieces

PASSES = 4.0
"""Times that what a block keeps goes through memory outside of products: written and read, forward and back."""
HIDDEN = 0.8
"""Share of the backward pass, or with FSDP of both passes, behind which messages of the data ranks disappear."""
HOP_LINK, HOP_NETWORK = 3.4e-6, 14e-6
"""Seconds from one device to the next on a ring, in a node and between nodes: what NCCL's own model takes for rings."""


@dataclass(frozen=True, slots=True)
class Step:
    """Seconds of one optimiser step by what they go into."""

    products: float
    recomputed: float
    memory: float
    tensor_messages: float
    data_messages: float
    other_messages: float
    bubble: float
    optimiser: float

    @property
    def total(self) -> float:
        return (
            self.products + self.recomputed + self.memory + self.tensor_messages + self.data_messages
            + self.other_messages + self.bubble + self.optimiser
        )  # fmt: skip


def step(shape: Shape, seq: int, layout: Layout, device: Device) -> Step:
    """Seconds of a step of `micro x accumulate x data` rows of `seq` tokens."""
    flops = arithmetic.training_flops(shape, seq) * layout.rows * seq / layout.devices
    products = flops / (device.flops * device.reach) * layout.uneven(shape)
    recomputed = products / 3 * (1 - KEPT[layout.checkpoint])
    share = layout.micro * layout.accumulate / layout.context
    traffic = sum(s.n_layers * per_layer(s, seq, share) for s in (shape, *shape.also))
    memory = PASSES * traffic / layout.tensor / layout.pipeline / device.bandwidth
    tensor = _tensor(shape, seq, layout, device)
    other = _context_and_experts(shape, seq, layout, device) + _pipeline(shape, seq, layout, device)
    busy = products + recomputed + memory + tensor + other
    bubble = busy * (layout.pipeline - 1) / layout.accumulate / pieces(shape, layout)
    dense, experts = local_parameters(shape, layout)
    updated = (dense + experts) / (layout.replicas if layout.zero else 1)
    blocks = sum(s.n_layers for s in (shape, *shape.also)) / layout.pipeline
    data = _data(dense + experts, blocks, layout, device, products + recomputed + memory)
    return Step(products, recomputed, memory, tensor, data, other, bubble, 30 * updated / device.bandwidth)


def _rate(device: Device, ranks: int, beside: int) -> float:
    """Bytes/s of a collective over `ranks` that stand `beside` devices apart: a node's link, or its share of the net.

    Over nodes every device of a node that is in the group uses its own network card.
    """
    if ranks * beside <= device.node:
        return device.link
    inside = max(1, device.node // beside)
    return min(device.link, device.network * min(inside, ranks))


def _tensor(shape: Shape, seq: int, layout: Layout, device: Device) -> float:
    """Two gathers and two scatters a block, forward and back, of the residual stream (Korthikanti et al. 2022)."""
    t = layout.tensor
    if t == 1:
        return 0.0
    tokens = seq * layout.micro * layout.accumulate / layout.context
    rounds = 8 + 4 * (1 - KEPT[layout.checkpoint])
    size = sum(s.n_layers * s.d_model for s in (shape, *shape.also)) / layout.pipeline * 2 * tokens
    return rounds * size * (t - 1) / t / _rate(device, t, 1)


def _data(local: float, blocks: float, layout: Layout, device: Device, busy: float) -> float:
    """Gradients summed over replicas, weights gathered, a message a block: what the passes do not hide.

    A ring of n ranks moves (n - 1) / n of the bytes over each link and takes a hop for each of its ranks, so a message
    costs bytes / rate + hops (Thakur et al. 2005); FSDP gathers twice and scatters once, the others do each once.
    """
    n = layout.replicas
    if n == 1:
        return 0.0
    one = 2 * local * (n - 1) / n / _rate(device, n, layout.tensor) + (blocks + 1) * hops(device, n, layout.tensor)
    if layout.zero == 3:
        return max(0.0, 3 * one * layout.accumulate - HIDDEN * busy)
    return max(0.0, 2 * one - HIDDEN * 2 / 3 * busy / layout.accumulate)


def hops(device: Device, ranks: int, beside: int) -> float:
    """Seconds that a message takes round a ring of `ranks` which stand `beside` devices apart, however small it is."""
    nodes = min(ranks, -(-ranks * beside // device.node))
    return (ranks - nodes) * HOP_LINK + (nodes - 1) * HOP_NETWORK


def _context_and_experts(shape: Shape, seq: int, layout: Layout, device: Device) -> float:
    tokens = seq * layout.micro * layout.accumulate / layout.context
    seconds = 0.0
    if layout.context > 1:  # keys and values go round the ring, forward and twice back, half hidden by attention
        rate = _rate(device, layout.context, layout.tensor)
        size = 2 * 2 * shape.n_kv_heads * shape.d_head * tokens / layout.tensor * shape.n_layers / layout.pipeline
        seconds += 0.5 * 3 * size * (layout.context - 1) / rate
    if layout.expert > 1:  # tokens go to their experts and back, forward and back
        rate = device.link if layout.expert * layout.tensor <= device.node else device.network
        size = 2 * tokens * shape.n_active * shape.d_model * shape.n_layers / layout.pipeline / layout.tensor
        seconds += 4 * size * (layout.expert - 1) / layout.expert / rate
    return seconds


def _pipeline(shape: Shape, seq: int, layout: Layout, device: Device) -> float:
    if layout.pipeline == 1:
        return 0.0
    tokens = seq * layout.micro * layout.accumulate / layout.context
    return 2 * 2 * tokens * shape.d_model / layout.tensor / device.network


def utilisation(shape: Shape, seq: int, layout: Layout, device: Device, seconds: float) -> float:
    """Model FLOPs (attention counted, recomputation not) a second over the stated peak (Chowdhery et al. 2022)."""
    return arithmetic.training_flops(shape, seq) * layout.rows * seq / seconds / layout.devices / device.flops
