"""What GPT-1, 2 and 3 share besides their blocks: settings, heads, and how a config.json names them."""

from __future__ import annotations

from typing import Any, Literal, TypeVar

from ..base.config import Count, Settings
from ..nn.arithmetic import Shape
from . import _gpt_shaped as gpt_shaped
from ._stored import Stored, head_of, labels, missing, n_labels, per_layer, unprefixed

HF_PREFIX = "transformer."
"""What some files (the published ones) leave out at the start of their names."""


class GPTText(Settings):
    """Shape of a GPT that writes."""

    vocab_size: Count = 50257
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    max_len: Count = 1024
    """Positions that the model has."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none", "classes"] = "language"
    """What reads the stack out: scores of the next word, nothing, or scores of classes from the last token."""
    n_labels: int = 2
    """Classes, where head is 'classes'."""


AnyText = TypeVar("AnyText", bound=GPTText)


def shape(config: GPTText, d_ff: int, other_vectors: int) -> Shape:
    """What `nn.arithmetic` needs to know; `other_vectors` are those of a last norm."""
    c = config
    return Shape(
        vocab_size=c.vocab_size, d_model=c.d_model, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=c.d_model // c.n_heads, d_ff=d_ff, feedforward_matrices=2,
        tied=c.tie_word_embeddings or c.head != "language",
        other_matrices=c.n_labels * c.d_model if c.head == "classes" else 0,
        learned_positions=c.max_len, vectors_per_layer=gpt_shaped.vectors(c.d_model, d_ff),
        other_vectors=other_vectors,
    )  # fmt: skip


def hf_names(config: GPTText, patterns: dict[str, Stored]) -> dict[str, Stored]:
    """Our parameter names and where each stands in a file: the family's `patterns`, and the head's."""
    if config.head == "language" and not config.tie_word_embeddings:
        patterns = patterns | {"head.projection.weight": Stored("lm_head.weight")}
    elif config.head == "classes":
        patterns = patterns | {"head.projection.weight": Stored("score.weight")}
    found = per_layer(patterns, config.n_layers)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: GPTText, words: str) -> dict[str, str]:
    """The copy that some files hold of the words' matrix, which stands there as `words`."""
    return {"lm_head.weight": words} if config.tie_word_embeddings and config.head == "language" else {}


def to_hf(config: GPTText, model_type: str, **own: Any) -> dict[str, Any]:
    """The settings as `transformers` names them, those of the family (`own`) last."""
    c = config
    shared = {
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "n_embd": c.d_model,
        "n_layer": c.n_layers,
        "n_head": c.n_heads,
        "n_positions": c.max_len,
        "layer_norm_epsilon": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "resid_pdrop": c.dropout,
        "embd_pdrop": c.dropout,
        "attn_pdrop": c.dropout,
    }
    return labels(c) | shared | own


def from_hf(kind: type[AnyText], settings: dict[str, Any], heads: dict[str, str], **own: Any) -> AnyText:
    """Our settings from `transformers`', those of the family (`own`) last. Raises UserError when one is missing."""
    missing(settings, ("vocab_size", "n_embd", "n_layer", "n_head"))
    fields: dict[str, Any] = {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["n_embd"],
        "n_layers": settings["n_layer"],
        "n_heads": settings["n_head"],
        "norm_eps": settings.get("layer_norm_epsilon", 1e-5),
        "tie_word_embeddings": settings.get("tie_word_embeddings", True),
        "init_std": settings.get("initializer_range", 0.02),
        "dropout": settings.get("resid_pdrop", 0.1),
        "head": head_of(settings, heads),
        "n_labels": n_labels(settings),
    }
    if "n_positions" in settings:
        fields["max_len"] = settings["n_positions"]
    return kind(**fields | own)
