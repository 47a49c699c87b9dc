"""The shape that GPT-2 set and vision shares: layer norm first, full heads and plain matrices, all with biases."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from ..nn.attention import Attention
from ..nn.feedforward import FeedForward
from ..nn.heads import ClassHead, Headless, LanguageHead, Last
from ..nn.mixing import Softmax
from ..nn.norm import LayerNorm
from ..nn.position import Unrotated
from ..nn.stack import Block
from ._stored import Stored, with_bias

TENSOR_PLAN = {
    "stack.blocks.*.attention.query": "heads",
    "stack.blocks.*.attention.key": "heads",
    "stack.blocks.*.attention.value": "heads",
    "stack.blocks.*.attention.out": "rows",
    "stack.blocks.*.feedforward.up": "columns",
    "stack.blocks.*.feedforward.down": "rows",
}
"""How tensor parallelism cuts a model of this shape (`train.split`)."""


def block(
    layer: int,
    *,
    d_model: int,
    n_heads: int,
    d_ff: int,
    mask: nn.Module,
    activation: Callable[[Tensor], Tensor],
    eps: float,
    dropout: float = 0.0,
    bias: bool = True,
    kind: type[Block] = Block,
) -> Block:
    """A block of this shape; `bias` of queries, keys and values; `kind` orders the parts."""
    attention = Attention(
        query=nn.Linear(d_model, d_model, bias),
        key=nn.Linear(d_model, d_model, bias),
        value=nn.Linear(d_model, d_model, bias),
        out=nn.Linear(d_model, d_model),
        d_head=d_model // n_heads,
        layer=layer,
        mask=mask,
        position=Unrotated(),
        mixer=Softmax(dropout=dropout),
    )
    feedforward = FeedForward(nn.Linear(d_model, d_ff), nn.Linear(d_ff, d_model), activation)
    return kind(LayerNorm(d_model, eps), attention, LayerNorm(d_model, eps), feedforward, dropout)


def reader(config: Any, words: nn.Embedding) -> nn.Module:
    """What reads a decoder out, as `config.head` says; the words' own matrix where they are tied."""
    if config.head == "none":
        return Headless()
    if config.head == "classes":
        return ClassHead(nn.Linear(config.d_model, config.n_labels, bias=False), Last())
    projection = nn.Linear(config.d_model, config.vocab_size, bias=False)
    if config.tie_word_embeddings:
        projection.weight = words.weight
    return LanguageHead(projection)


def vectors(d_model: int, d_ff: int, bias: bool = True) -> int:
    """Numbers in a block's norms and biases."""
    return (9 if bias else 6) * d_model + d_ff


def named(prefix: str, parts: dict[str, str], bias: bool = True) -> dict[str, Stored]:
    """Names of a block whose parts stand under `prefix` with `{}` for the layer; ours -> theirs in `parts`.

    Without `bias`, queries, keys and values have none.
    """
    found = {f"stack.blocks.{{}}.{ours}": place.moved(prefix) for ours, place in with_bias(parts).items()}
    bare = () if bias else tuple(f"attention.{part}.bias" for part in ("query", "key", "value"))
    return {ours: place for ours, place in found.items() if not ours.endswith(bare)} if bare else found
