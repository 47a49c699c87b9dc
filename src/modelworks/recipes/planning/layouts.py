"""Parallel layouts: how a model's training is cut over devices, and what one of them must then hold.

    devices = data x tensor x pipeline x context;  experts are spread over data and context ranks

What is kept per parameter is ZeRO's split (Rajbhandari et al. 2020): 2 bytes of weights, 2 of gradients, 12 of the
optimiser (float32 weights and AdamW's two moments), cut by the stage over all ranks that hold the same weights.
Activations are Megatron's count (Korthikanti et al. 2022) for any shape of block, with attention that keeps no
scores (Dao et al. 2022), and with tensor parallelism along the sequence too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...nn import arithmetic
from ...nn.arithmetic import Shape

WEIGHTS, GRADIENTS, OPTIMISER = 2, 2, 12
RESERVED = 2e9
"""Bytes of a device for its driver's context, communication buffers and fragments: a round guess."""
INTERLEAVED = 4
"""Pieces of the stack that a pipeline stage holds, at most (Narayanan et al. 2021): bubbles shrink by it."""
KEPT = {"none": 1.0, "half": 0.5, "all": 0.0}
"""Activation checkpointing -> share of the blocks that keep everything; the others keep their input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to train: ranks along each axis, ZeRO's stage, checkpointed blocks, rows in a micro-batch."""

    data: int = 1
    tensor: int = 1
    pipeline: int = 1
    context: int = 1
    expert: int = 1
    zero: int = 0
    checkpoint: str = "none"
    micro: int = 1
    accumulate: int = 1

    @property
    def devices(self) -> int:
        return self.data * self.tensor * self.pipeline * self.context

    @property
    def replicas(self) -> int:
        """Ranks that hold the same weights, over which ZeRO may cut."""
        return self.data * self.context

    @property
    def rows(self) -> int:
        """Rows in a step."""
        return self.data * self.micro * self.accumulate

    def uneven(self, shape: Shape) -> float:
        """The fullest pipeline stage's share of the blocks over the mean one's."""
        return -(-shape.n_layers // self.pipeline) * self.pipeline / shape.n_layers

    @property
    def words(self) -> str:
        """'FSDP 128 x tensor 8', for people."""
        names = {0: "data", 1: "ZeRO-1", 2: "ZeRO-2", 3: "FSDP"}
        parts = [f"{names[self.zero]} {self.data}"] if self.data > 1 or self.devices == 1 else []
        for axis in ("tensor", "pipeline", "context", "expert"):
            if (ranks := getattr(self, axis)) > 1:
                parts.append(f"{axis} {ranks}")
        return " x ".join(parts) or "one device"


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on the fullest device, by part."""

    weights: float
    gradients: float
    optimiser: float
    activations: float
    reserved: float = RESERVED

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.activations + self.reserved


def memory(shape: Shape, seq: int, layout: Layout, *, dropout: bool = False) -> Memory:
    """Bytes on the fullest device while `layout` trains rows of `seq` tokens."""
    dense, experts = local_parameters(shape, layout)
    cuts = (layout.replicas, max(1, layout.replicas // layout.expert))
    held = [dense / cuts[0] + experts / cuts[1], dense + experts]  # cut, whole
    weights = WEIGHTS * held[layout.zero < 3]
    if layout.zero == 3:  # the block at work and the next one stand whole, and one block's gradients
        block = arithmetic.layer_matrices(shape) / layout.tensor / layout.expert
        weights += 2 * WEIGHTS * block
    gradients = GRADIENTS * held[layout.zero < 2]
    if layout.zero >= 2:
        gradients += GRADIENTS * arithmetic.layer_matrices(shape) / layout.tensor / layout.expert
    return Memory(weights, gradients, OPTIMISER * held[layout.zero < 1], kept(shape, seq, layout, dropout=dropout))


def local_parameters(shape: Shape, layout: Layout) -> tuple[float, float]:
    """Parameters on the fullest pipeline stage's device before ZeRO: (all but experts, experts)."""
    dense = experts = tables = 0.0
    for part in (shape, *shape.also):
        every = part.n_layers * (arithmetic.layer_matrices(part) + part.vectors_per_layer)
        routed = part.n_layers * part.n_experts * part.feedforward_matrices * part.d_model * part.d_ff
        dense, experts = dense + every - routed, experts + routed
        sizes = [part.vocab_size + part.learned_positions] + ([] if part.tied else [part.vocab_size])
        ends = max(sizes) if layout.pipeline > 1 else sum(sizes)
        tables += ends * part.d_model + part.other_matrices + part.other_vectors
    cut = layout.tensor * layout.pipeline / layout.uneven(shape)
    return dense / cut + tables / layout.tensor, experts / cut / layout.expert


def per_layer(
    shape: Shape, seq: int, rows: float, *, dropout: bool = False, scores: bool = False, tensor: int = 1
) -> float:
    """Bytes that one block keeps of `rows` rows, numbers of 2 bytes, dropout masks of 1.

    With two feed-forward matrices of 4 times the width, as many key heads as heads, `dropout` and `scores` it is
    s b h (34 + 5 a s / h) / t (Korthikanti et al. 2022, tensor parallelism with sequence parallelism).
    """
    tokens, heads, kv = seq * rows, shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    inner = (3 if shape.feedforward_matrices == 3 else 2) * shape.d_ff * max(1, shape.n_active)
    numbers = 2 * shape.d_model + 2 * shape.d_model + 2 * heads + 2 * kv + inner  # norms, inputs of matrices, q k v o
    if shape.n_experts:
        numbers += (2 * shape.n_active - 1) * shape.d_model  # inputs and outputs of each expert
    if shape.cross_attention:
        numbers += 2 * shape.d_model + 2 * heads + 2 * kv
    places = 3 if shape.cross_attention else 2
    masks = places * shape.d_model if dropout else 0
    held = tokens * (2 * numbers + masks)
    if scores:
        held += tokens * seq * shape.n_heads * (2 + 2 + 1 if dropout else 2)
    return held / tensor


def kept(shape: Shape, seq: int, layout: Layout, *, dropout: bool = False) -> float:
    """Bytes of activations on the fullest device: those of the micro-batches in flight, or of the head's logits."""
    rows = layout.micro / layout.context
    tokens = seq * rows
    flights: float = min(layout.pipeline, layout.accumulate)
    if layout.pipeline > 1 and flights == layout.pipeline:  # the first pieces of the next ones are there already
        flights *= 1 + (layout.pipeline - 1) / layout.pipeline / pieces(shape, layout)
    blocks = working = 0.0
    for part in (shape, *shape.also):
        whole = per_layer(part, seq, rows, dropout=dropout, tensor=layout.tensor)
        entry = 2 * tokens * part.d_model / layout.tensor
        share = KEPT[layout.checkpoint]
        blocks += part.n_layers / layout.pipeline * layout.uneven(shape) * (share * whole + (1 - share) * entry)
        working = max(working, whole if share < 1 else 0.0)
    logits = (2 + 4) * tokens * shape.vocab_size / layout.tensor
    if layout.pipeline == 1:
        return blocks + max(working, logits)
    return max(blocks * flights + working, blocks + logits)


def pieces(shape: Shape, layout: Layout) -> int:
    """Pieces of the stack on a pipeline stage."""
    return max(1, min(INTERLEAVED, shape.n_layers // layout.pipeline))


def candidates(shape: Shape, seq: int, gpus: int, node: int, rows: int) -> Iterator[Layout]:
    """Every layout of `gpus` devices that this shape can be cut to, for about `rows` rows in a step.

    Tensor ranks stay in a node and divide the heads; pipeline stages divide the blocks, and go with ZeRO-1 at most;
    context ranks see 2048 tokens or more each; experts are spread over data ranks.
    """
    for tensor in (t for t in (1, 2, 4, 8) if t <= min(node, gpus) and _divides(t, shape)):
        for pipeline in (p for p in range(1, min(64, shape.n_layers) + 1) if _stages(p, shape)):
            for context in (c for c in (1, 2, 4, 8, 16) if c == 1 or seq // c >= 2048):
                data, left = divmod(gpus, tensor * pipeline * context)
                if left or data < 1 or data > rows:
                    continue
                for expert in _expert_ranks(shape, data * context):
                    yield from _variants(rows, data, tensor, pipeline, context, expert)


def _stages(stages: int, shape: Shape) -> bool:
    """Stages that divide the blocks, or powers of two of which the fullest has a tenth more than the mean at most."""
    if shape.also and stages > 1:
        return False
    return shape.n_layers % stages == 0 or (stages & (stages - 1) == 0 and Layout(pipeline=stages).uneven(shape) <= 1.1)


def _divides(ranks: int, shape: Shape) -> bool:
    return shape.n_heads % ranks == 0 and (shape.n_kv_heads % ranks == 0 or ranks % shape.n_kv_heads == 0)


def _expert_ranks(shape: Shape, replicas: int) -> list[int]:
    return [e for e in range(1, max(1, shape.n_experts) + 1) if max(1, shape.n_experts) % e == 0 and replicas % e == 0]


def _variants(rows: int, data: int, tensor: int, pipeline: int, context: int, expert: int) -> Iterator[Layout]:
    most = max(1, rows // data)
    stages = (0,) if data * context == 1 else (0, 1) if pipeline > 1 else (0, 1, 2, 3)
    for micro in (m for m in (1, 2, 4, 8, 16, 32, 64) if m <= most):
        for zero in stages:
            for checkpoint in KEPT:
                yield Layout(
                    data=data, tensor=tensor, pipeline=pipeline, context=context, expert=expert, zero=zero,
                    checkpoint=checkpoint, micro=micro, accumulate=max(1, round(most / micro)),
                )  # fmt: skip
