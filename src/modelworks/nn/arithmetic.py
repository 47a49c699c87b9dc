"""Exact arithmetic of a transformer: parameters, FLOPs, bytes. Nothing is built; a `Shape` says it all."""

from __future__ import annotations

from dataclasses import dataclass

from . import blockwise
from .heads import CrossEntropy


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides a stack's size. Vectors are norm weights and biases, counted by the family."""

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_ff: int
    feedforward_matrices: int
    """3 with a gate, 2 without."""
    tied: bool
    vectors_per_layer: int
    other_vectors: int
    learned_positions: int = 0
    """Rows of d_model numbers in tables of positions and token types."""
    n_experts: int = 0
    """Feed-forward parts a block chooses from, each of `feedforward_matrices` matrices; 0 without a router."""
    n_active: int = 0
    """Experts that a token passes through."""
    windows: tuple[int, ...] = ()
    """How many tokens each layer sees; 0 is all of them. Empty: all layers see all."""
    causal: bool = True
    """A token sees only what stands before it."""
    cross_attention: bool = False
    """Each block has a second attention, to a memory."""
    other_matrices: int = 0
    """Parameters in matrices outside blocks and tables (a head's transform, a pooler, a patch projection)."""
    also: tuple[Shape, ...] = ()
    """Other stacks of the same model; all sizes add up."""


def layer_matrices(shape: Shape) -> int:
    """Matrix parameters of one block."""
    attention = shape.d_model * shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads)
    feedforward = shape.feedforward_matrices * shape.d_model * shape.d_ff
    if shape.n_experts:
        feedforward = shape.n_experts * (feedforward + shape.d_model)  # and the router's row
    return attention * (2 if shape.cross_attention else 1) + feedforward


def parameters(shape: Shape) -> int:
    """Number of parameters, a tied matrix counted once: exactly that of the built model."""
    tables = shape.vocab_size * shape.d_model * (1 if shape.tied else 2) + shape.learned_positions * shape.d_model
    layers = shape.n_layers * (layer_matrices(shape) + shape.vectors_per_layer)
    return tables + layers + shape.other_matrices + shape.other_vectors + sum(map(parameters, shape.also))


def forward_flops(shape: Shape, seq: int, causal: bool = True) -> float:
    """Multiply-adds (2 FLOPs each) per token of a forward pass over `seq` tokens, attention and head included.

    Matrices cost 2 a parameter and token; scores and mixing 2 * 2 * H * D a token seen, of which a causal
    token sees (seq + 1) / 2 on average. Norms, activations and the softmax are left out (below 1 %).
    """
    matrices = shape.n_layers * layer_matrices(shape) + shape.vocab_size * shape.d_model
    seen = (seq + 1) / 2 if causal else seq
    return 2 * matrices + 4 * shape.n_layers * shape.n_heads * shape.d_head * seen


def training_flops(shape: Shape, seq: int, causal: bool = True) -> float:
    """FLOPs per token of forward and backward: three times the forward pass (Kaplan et al. 2020)."""
    return 3 * forward_flops(shape, seq, causal)


def decode_flops(shape: Shape, context: int) -> float:
    """FLOPs to generate one token that sees `context` tokens, itself included, from the cache."""
    matrices = shape.n_layers * layer_matrices(shape) + shape.vocab_size * shape.d_model
    return 2 * matrices + 4 * shape.n_layers * shape.n_heads * shape.d_head * context


def kv_bytes(shape: Shape, seq: int, batch: int = 1, width: int = 2) -> int:
    """Bytes of the KV cache for `batch` rows of `seq` tokens in numbers of `width` bytes."""
    return 2 * shape.n_layers * shape.n_kv_heads * shape.d_head * seq * batch * width


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that training needs, by part."""

    weights: int
    gradients: int
    optimiser: int
    activations: int

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimiser + self.activations


def training_memory(shape: Shape, seq: int, rows: int, *, width: int = 2, states: int = 2) -> Memory:
    """Bytes to train `rows` rows of `seq` tokens: float32 weights and gradients, `states` float32 numbers a
    parameter in the optimiser (AdamW 2, Muon 1), activations in numbers of `width` bytes (bfloat16 2).

    Activations are what the backward pass of our parts keeps, per token and layer: the float32 residual stream
    before both norms; the inputs of all matrices; queries and keys before and after their norm, values, their
    mixture; what stands between the feed-forward matrices; the attention kept by blocks; once, the head's
    exponentials; and the matrices themselves when they are converted to a narrower format.
    """
    count = parameters(shape)
    heads, kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    inner = (4 if shape.feedforward_matrices == 3 else 2) * shape.d_ff
    shares = shape.n_heads * (seq + min(seq, blockwise.QUERIES)) // 2 if seq <= blockwise.LONGEST else 0
    per_layer = 2 * 4 * shape.d_model + width * (2 * shape.d_model + 3 * (heads + kv) + inner + shares)
    tokens = seq * rows
    head = width * shape.vocab_size * tokens
    head = head if head <= CrossEntropy.KEEP else 0
    activations = tokens * (shape.n_layers * per_layer + (4 + width) * shape.d_model) + head
    if width < 4:
        activations += width * (shape.n_layers * layer_matrices(shape) + shape.vocab_size * shape.d_model)
    return Memory(4 * count, 4 * count, 4 * states * count, activations)
