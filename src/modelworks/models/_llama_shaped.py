"""The shape that Llama set and most decoders share: RMSNorm first, rotary positions, grouped heads, a gated part.

A family of this shape extends `LlamaShaped`, puts its own parts into `assemble`, and adds to `NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Count, Settings
from ..nn.arithmetic import Shape
from ..nn.attention import Attention
from ..nn.feedforward import GatedFeedForward
from ..nn.heads import ClassHead, Headless, LanguageHead, Last
from ..nn.norm import RMSNorm
from ..nn.stack import Block, Stack
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._fresh import initialise
from ._stored import Stored, head_of, labels, missing, n_labels, per_layer, rope, unprefixed


class LlamaShaped(Settings):
    """Shape of a decoder."""

    vocab_size: Count
    """Number of words."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Number of blocks."""
    n_heads: int
    """Query heads."""
    n_kv_heads: int
    """Key and value heads; n_heads must be a multiple of it."""
    d_head: int
    """Width of a head; even."""
    d_ff: int
    """Inner width of the feed-forward part."""
    max_len: Count = 4096
    """Longest text in tokens that the model is meant for."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    tie_word_embeddings: bool = False
    """The head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; the matrices that write to the residual stream start at zero."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none", "classes"] = "language"
    """What reads the stack out: scores of the next word, nothing, or scores of classes from the last token."""
    n_labels: int = 2
    """Classes, where head is 'classes'."""


AnyShape = TypeVar("AnyShape", bound=LlamaShaped)


def architectures(name: str) -> dict[str, str]:
    """The Hugging Face classes of a family: 'Llama' -> LlamaForCausalLM and its kin, and our name of their head."""
    return {f"{name}ForCausalLM": "language", f"{name}Model": "none", f"{name}ForSequenceClassification": "classes"}


def matrix(inputs: int, outputs: int, bias: bool = False) -> nn.Linear:
    """A linear layer as this shape has them: without a bias unless asked."""
    return nn.Linear(inputs, outputs, bias=bias)


def attention(
    config: LlamaShaped,
    layer: int,
    *,
    mask: nn.Module,
    position: nn.Module,
    bias: bool = False,
    out_bias: bool = False,
    **parts: Any,
) -> Attention:
    """Grouped-query attention of this shape; `parts` are those of `nn.attention.Attention`."""
    c = config
    return Attention(
        query=matrix(c.d_model, c.n_heads * c.d_head, bias),
        key=matrix(c.d_model, c.n_kv_heads * c.d_head, bias),
        value=matrix(c.d_model, c.n_kv_heads * c.d_head, bias),
        out=matrix(c.n_heads * c.d_head, c.d_model, out_bias),
        d_head=c.d_head,
        layer=layer,
        mask=mask,
        position=position,
        **parts,
    )


def gated(config: LlamaShaped, activation: Callable[[Tensor], Tensor] = F.silu) -> GatedFeedForward:
    """The gated feed-forward part (SwiGLU unless another activation is given)."""
    c = config
    return GatedFeedForward(matrix(c.d_model, c.d_ff), matrix(c.d_model, c.d_ff), matrix(c.d_ff, c.d_model), activation)


def block(config: LlamaShaped, attends: nn.Module, feeds: nn.Module, kind: type[Block] = Block) -> Block:
    """A pre-norm block of the two parts."""
    c = config
    return kind(RMSNorm(c.d_model, c.norm_eps), attends, RMSNorm(c.d_model, c.norm_eps), feeds, c.dropout)


def assemble(
    config: LlamaShaped,
    make_block: Callable[[int], nn.Module],
    norm: nn.Module,
    *,
    stem: Callable[[nn.Embedding, float], nn.Module] = Tokens,
    head: Callable[[nn.Linear], nn.Module] = LanguageHead,
    writers: float = 0.0,
) -> Transformer:
    """The model with fresh weights, on torch's current device.

    `stem` is given the embedding and a dropout, `head` the projection; `writers` is the standard deviation of the
    matrices that write to the residual stream.
    """
    c = config
    embedding = nn.Embedding(c.vocab_size, c.d_model)
    reads: nn.Module = Headless()
    if c.head == "classes":
        reads = ClassHead(matrix(c.d_model, c.n_labels), Last())
    elif c.head == "language":
        projection = matrix(c.d_model, c.vocab_size)
        if c.tie_word_embeddings:
            projection.weight = embedding.weight
        reads = head(projection)
    stack = Stack([make_block(layer) for layer in range(c.n_layers)], norm)
    model = Transformer(stem(embedding, c.dropout), stack, reads)
    initialise(model, c.init_std, writers)
    return model


def shape(config: LlamaShaped, **others: Any) -> Shape:
    """What `nn.arithmetic` needs to know; `others` where the family differs."""
    c = config
    facts: dict[str, Any] = {
        "vocab_size": c.vocab_size, "d_model": c.d_model, "n_layers": c.n_layers, "n_heads": c.n_heads,
        "n_kv_heads": c.n_kv_heads, "d_head": c.d_head, "d_ff": c.d_ff, "feedforward_matrices": 3,
        "tied": c.tie_word_embeddings or c.head != "language", "vectors_per_layer": 2 * c.d_model,
        "other_vectors": c.d_model, "other_matrices": c.n_labels * c.d_model if c.head == "classes" else 0,
    }  # fmt: skip
    return Shape(**facts | others)


NAMES = {
    "attention_norm.weight": "input_layernorm.weight",
    "attention.query.weight": "self_attn.q_proj.weight",
    "attention.key.weight": "self_attn.k_proj.weight",
    "attention.value.weight": "self_attn.v_proj.weight",
    "attention.out.weight": "self_attn.o_proj.weight",
    "feedforward_norm.weight": "post_attention_layernorm.weight",
    "feedforward.gate.weight": "mlp.gate_proj.weight",
    "feedforward.up.weight": "mlp.up_proj.weight",
    "feedforward.down.weight": "mlp.down_proj.weight",
}
"""Ours and theirs within a block."""
TENSOR_PLAN = {
    "stack.blocks.*.attention.query": "heads",
    "stack.blocks.*.attention.key": "heads",
    "stack.blocks.*.attention.value": "heads",
    "stack.blocks.*.attention.query_norm": "shared",
    "stack.blocks.*.attention.key_norm": "shared",
    "stack.blocks.*.attention.out": "rows",
    "stack.blocks.*.feedforward.gate": "columns",
    "stack.blocks.*.feedforward.up": "columns",
    "stack.blocks.*.feedforward.down": "rows",
}
"""How tensor parallelism cuts a dense model of this shape (`train.split`)."""
HF_PREFIX = "model."
"""What stands before the names of all but the head, and is left out where there is no head."""
HF_IGNORED = (r".*rotary_emb\.inv_freq",)
"""Tensors of older files that carry nothing learned."""


def hf_names(config: LlamaShaped, names: dict[str, str | Stored] | dict[str, str] = NAMES) -> dict[str, Stored]:
    """Our parameter names and where each stands in a file; `names` are those within a block."""
    patterns = {"stem.tokens.weight": Stored("model.embed_tokens.weight")}
    for ours, theirs in names.items():
        place = Stored(theirs) if isinstance(theirs, str) else theirs
        patterns[f"stack.blocks.{{}}.{ours}"] = place.moved("model.layers.{}.")
    patterns["stack.norm.weight"] = Stored("model.norm.weight")
    if config.head == "language" and not config.tie_word_embeddings:
        patterns["head.projection.weight"] = Stored("lm_head.weight")
    elif config.head == "classes":
        patterns["head.projection.weight"] = Stored("score.weight")
    found = per_layer(patterns, config.n_layers)
    return unprefixed(found, HF_PREFIX) if config.head == "none" else found


def hf_tied(config: LlamaShaped) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    tied = config.tie_word_embeddings and config.head == "language"
    return {"lm_head.weight": "model.embed_tokens.weight"} if tied else {}


def to_hf(config: LlamaShaped, model_type: str, **own: Any) -> dict[str, Any]:
    """The settings as `transformers` names them, those of the family (`own`) last."""
    c = config
    shared = {
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "num_key_value_heads": c.n_kv_heads,
        "head_dim": c.d_head,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len,
        "rope_theta": c.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_type": "default", "rope_theta": c.rope_theta},
        "rms_norm_eps": c.norm_eps,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "attention_dropout": c.dropout,
        "hidden_act": "silu",
    }
    return shared | labels(c) | own


def from_hf(kind: type[AnyShape], settings: dict[str, Any], heads: dict[str, str], **own: Any) -> AnyShape:
    """Our settings from `transformers`', those of the family (`own`) last. Raises UserError when one is missing."""
    missing(settings, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    n_heads = settings["num_attention_heads"]
    fields: dict[str, Any] = {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["hidden_size"],
        "n_layers": settings["num_hidden_layers"],
        "n_heads": n_heads,
        "n_kv_heads": settings.get("num_key_value_heads") or n_heads,
        "d_head": settings.get("head_dim") or settings["hidden_size"] // n_heads,
        "d_ff": settings["intermediate_size"],
        "max_len": settings.get("max_position_embeddings", 2048),
        "rope_theta": rope(settings)["rope_theta"],
        "norm_eps": settings.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": settings.get("tie_word_embeddings", False),
        "init_std": settings.get("initializer_range", 0.02),
        "dropout": settings.get("attention_dropout", 0.0),
        "head": head_of(settings, heads),
    }
    if fields["head"] == "classes":
        fields["n_labels"] = n_labels(settings)
    return kind(**fields | own)
