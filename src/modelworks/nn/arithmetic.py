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
    head_norms: bool = False
    """Queries and keys have norms of their own: no size, but what is kept for the backward pass."""


def attention_matrices(shape: Shape) -> int:
    """Matrix parameters of a block's attention, or of both where it reads a memory too."""
    one = shape.d_model * shape.d_head * (2 * shape.n_heads + 2 * shape.n_kv_heads)
    return one * (2 if shape.cross_attention else 1)


def layer_matrices(shape: Shape) -> int:
    """Matrix parameters of one block, all its experts counted."""
    feedforward = shape.feedforward_matrices * shape.d_model * shape.d_ff
    if shape.n_experts:
        feedforward = shape.n_experts * (feedforward + shape.d_model)  # and the router's row
    return attention_matrices(shape) + feedforward


def active_layer_matrices(shape: Shape) -> int:
    """Matrix parameters of one block that a token meets: `n_active` experts, and the router."""
    if not shape.n_experts:
        return layer_matrices(shape)
    expert = shape.feedforward_matrices * shape.d_model * shape.d_ff
    return attention_matrices(shape) + shape.n_active * expert + shape.n_experts * shape.d_model


def parameters(shape: Shape) -> int:
    """Number of parameters, a tied matrix counted once: exactly that of the built model."""
    layers = shape.n_layers * (layer_matrices(shape) + shape.vectors_per_layer)
    return _tables(shape) + layers + shape.other_matrices + shape.other_vectors + sum(map(parameters, shape.also))


def active_parameters(shape: Shape) -> int:
    """Parameters that work on one token: all of them, or with experts those of the chosen ones (tables included)."""
    return parameters(shape) - sum(
        s.n_layers * (layer_matrices(s) - active_layer_matrices(s)) for s in (shape, *shape.also)
    )


def _tables(shape: Shape) -> int:
    return shape.vocab_size * shape.d_model * (1 if shape.tied else 2) + shape.learned_positions * shape.d_model


def seen(shape: Shape, seq: int) -> float:
    """Tokens that a token of a text of `seq` sees, on average over places, summed over layers; itself included.

    Causal: (seq + 1) / 2, and with a window w below seq: w - w (w - 1) / (2 seq). To both sides, with w = 2 h + 1
    in all: w - h (h + 1) / seq.
    """
    windows = shape.windows or (0,) * shape.n_layers
    return sum(_seen(window or 2 * seq, seq, shape.causal) for window in windows)


def _seen(window: int, seq: int, causal: bool) -> float:
    if causal:
        near = min(window, seq)
        return near - near * (near - 1) / (2 * seq)
    half = min((window - 1) // 2, seq - 1)
    return 2 * half + 1 - half * (half + 1) / seq


def forward_flops(shape: Shape, seq: int, causal: bool | None = None) -> float:
    """Multiply-adds (2 FLOPs each) per token of a forward pass over `seq` tokens, attention and head included.

    Matrices cost 2 a parameter and token (with experts: of those chosen); scores and mixing 2 * 2 * H * D for each
    token seen (`seen`), or for all `seq` of them with `causal=False`, which is what kernels without a notion of
    masks compute. Other stacks (`also`) and memories are as long as the text. Norms, activations and the softmax
    are left out (below 1 %).
    """
    looked_at = shape.n_layers * seq if causal is False else seen(shape, seq)
    if shape.cross_attention:
        looked_at += shape.n_layers * seq
    attention = 4 * shape.n_heads * shape.d_head * looked_at
    return 2 * _products(shape) + attention + sum(forward_flops(other, seq, causal) for other in shape.also)


def _products(shape: Shape) -> int:
    """Matrix parameters that a token is multiplied by, the head's included."""
    return shape.n_layers * active_layer_matrices(shape) + shape.vocab_size * shape.d_model + shape.other_matrices


def training_flops(shape: Shape, seq: int, causal: bool | None = None) -> float:
    """FLOPs per token of forward and backward: three times the forward pass (Kaplan et al. 2020)."""
    return 3 * forward_flops(shape, seq, causal)


def convention_flops(shape: Shape) -> float:
    """6 a parameter and token, attention left out (Kaplan et al. 2020): what most published totals are counted in."""
    return 6 * active_parameters(shape)


def decode_flops(shape: Shape, context: int) -> float:
    """FLOPs to generate one token that sees `context` tokens, itself included, from the cache.

    An encoder beside it has done its work before and is not counted; a memory is as long as the context.
    """
    windows = shape.windows or (0,) * shape.n_layers
    looked_at = sum(min(window, context) if window else context for window in windows)
    if shape.cross_attention:
        looked_at += shape.n_layers * context
    return 2 * _products(shape) + 4 * shape.n_heads * shape.d_head * looked_at


def kv_bytes(shape: Shape, seq: int, batch: int = 1, width: int = 2, rolling: bool = False) -> int:
    """Bytes of the KV cache for `batch` rows of `seq` tokens in numbers of `width` bytes; 0 for an encoder.

    Every layer keeps all tokens, as our cache does; with `rolling` a layer with a window keeps only that (vLLM).
    A memory's keys and values are kept too, as long as the text.
    """
    if not shape.causal:
        return 0
    windows = shape.windows if rolling and shape.windows else (0,) * shape.n_layers
    places = sum(min(window, seq) if window else seq for window in windows)
    if shape.cross_attention:
        places += shape.n_layers * seq
    return 2 * shape.n_kv_heads * shape.d_head * places * batch * width


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


def training_memory(
    shape: Shape, seq: int, rows: int, *, width: int = 2, states: int = 2, dropout: float = 0.0
) -> Memory:
    """Bytes to train `rows` rows of `seq` tokens: float32 weights and gradients, `states` float32 numbers a
    parameter in the optimiser (AdamW 2, Muon 1), activations in numbers of `width` bytes (bfloat16 2), in which the
    weights then stand a second time (`train.precision`)."""
    count = parameters(shape)
    return Memory((4 + width % 4) * count, 4 * count, 4 * states * count, activations(shape, seq, rows, width, dropout))


def activations(shape: Shape, seq: int, rows: int, width: int = 2, dropout: float = 0.0) -> int:
    """Bytes that the backward pass of our parts on a processor keeps, whole blocks and the head.

    Per token and layer: the residual stream before both norms; the inputs of all matrices; queries, keys, values and
    their mixture (queries and keys twice where they have norms); what stands between the feed-forward matrices; what
    attention keeps. Once: the head's exponentials while they are small.
    """
    tokens = seq * rows
    head = width * shape.vocab_size * tokens
    kept: float = head if head <= CrossEntropy.KEEP else 0
    kept += tokens * (shape.n_layers * _kept_per_token(shape, seq, width, dropout) + 2 * width * shape.d_model)
    return round(kept) + sum(activations(other, seq, rows, width, dropout) for other in shape.also)


def _kept_per_token(shape: Shape, seq: int, width: int, dropout: float) -> float:
    heads, kv = shape.n_heads * shape.d_head, shape.n_kv_heads * shape.d_head
    each = 3 if shape.head_norms else 2
    gated = shape.feedforward_matrices == 3
    inner = (3 if gated else 2) * shape.d_ff
    if shape.n_experts:  # only what goes into the activation is kept (`nn.experts`)
        inner = (2 if gated else 1) * shape.d_ff * shape.n_active
    narrow = 2 * shape.d_model + each * (heads + kv) + inner
    places = 2
    if shape.cross_attention:
        places, narrow = 3, narrow + shape.d_model + 2 * (heads + kv)
    attended = _kept_by_attention(shape, seq, width, dropout) * (2 if shape.cross_attention else 1)
    dropped = places * shape.d_model if dropout else 0
    return places * width * shape.d_model + width * narrow + attended + dropped


def _kept_by_attention(shape: Shape, seq: int, width: int, dropout: float) -> float:
    """Bytes a token: shares by blocks (`blockwise`), all of them with dropout, a sum a head in long texts."""
    if dropout:
        return shape.n_heads * seq * (3 * width + 1) + 2 * width * shape.n_heads * shape.d_head
    if seq > blockwise.LONGEST:
        return 4 * shape.n_heads
    keys = (seq + min(seq, blockwise.QUERIES)) / 2 if shape.causal else seq
    return width * shape.n_heads * keys
