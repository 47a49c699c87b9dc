"""The shape that BERT set: words, positions and token types, normed; post-norm blocks that look both ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.heads import ClassHead, Headless, LanguageHead
from ..nn.masks import Bidirectional
from ..nn.norm import LayerNorm
from ..nn.stack import PostNormBlock, Stack
from ..nn.stems import TypedTokens
from ..nn.transformer import Transformer
from . import _gpt_shaped as gpt_shaped
from ._fresh import initialise
from ._stored import Stored, chosen, head_of, idle, labels, missing, n_labels, need, per_layer, with_bias


class BertShaped(Settings):
    """Shape of an encoder with token types."""

    vocab_size: Count = 30522
    """Number of words."""
    d_model: int = 768
    """Width of the residual stream."""
    n_layers: int = 12
    """Number of blocks."""
    n_heads: int = 12
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int = 3072
    """Inner width of the feed-forward part."""
    max_len: Count = 512
    """Positions that the model has."""
    n_types: int = 2
    """Token types: which of two sentences a token belongs to."""
    activation: str = "gelu"
    """What stands between the feed-forward matrices."""
    norm_eps: float = 1e-12
    """Added to the variance in layer norm."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: str = "masked_lm"
    """What reads the stack out."""
    n_labels: int = 2
    """Classes, where the head has them."""


class Sizes(Protocol):
    """What `stack` and the heads read of a configuration."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def d_ff(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def dropout(self) -> float: ...
    @property
    def n_labels(self) -> int: ...


class Predict(nn.Module):
    """What a masked-LM head does before it scores words: norm(activation(dense(x))). [..., D] -> [..., D]."""

    def __init__(self, dense: nn.Linear, activation: Callable[[Tensor], Tensor], norm: nn.Module) -> None:
        super().__init__()
        self.dense, self.activation, self.norm = dense, activation, norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(x)))


def stack(config: Sizes, eps: float) -> Stack:
    """Post-norm blocks, hence no norm behind them."""
    c, mask = config, Bidirectional()
    blocks = [
        gpt_shaped.block(
            layer, d_model=c.d_model, n_heads=c.n_heads, d_ff=c.d_ff, mask=mask, activation=ACTIVATIONS[c.activation],
            eps=eps, dropout=c.dropout, kind=PostNormBlock,
        )
        for layer in range(c.n_layers)
    ]  # fmt: skip
    return Stack(blocks, nn.Identity())


def masked_lm(config: Sizes, words: nn.Embedding | None, eps: float, activation: str) -> LanguageHead:
    """Scores of words: dense, activation, norm, then a matrix (the table `words` where given) and a bias."""
    c = config
    transform = Predict(nn.Linear(c.d_model, c.d_model), ACTIVATIONS[activation], LayerNorm(c.d_model, eps))
    projection = nn.Linear(c.d_model, c.vocab_size)
    if words is not None:
        projection.weight = words.weight
    return LanguageHead(projection, transform)


def token_labels(config: Sizes) -> LanguageHead:
    """Scores of labels at each token."""
    return LanguageHead(nn.Linear(config.d_model, config.n_labels), nn.Dropout(config.dropout))


def assemble(
    config: BertShaped, *, pool: Callable[[], nn.Module], headless: nn.Module | None, predict: str, offset: int = 0
) -> Transformer:
    """The model with fresh weights, on torch's current device.

    `pool` makes what stands before a classifier, `headless` pools where there is no head; `predict` names the
    activation of the masked-LM head; `offset` rows of the table of positions stand before position 0.
    """
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)
    positions, types = nn.Embedding(c.max_len + offset, c.d_model), nn.Embedding(c.n_types, c.d_model)
    stem = TypedTokens(words, positions, types, LayerNorm(c.d_model, c.norm_eps), c.dropout, offset)
    head: nn.Module
    if c.head == "masked_lm":
        head = masked_lm(c, words, c.norm_eps, predict)
    elif c.head == "classes":
        head = ClassHead(nn.Linear(c.d_model, c.n_labels), pool(), c.dropout)
    else:
        head = token_labels(c) if c.head == "tokens" else Headless(headless)
    model = Transformer(stem, stack(c, c.norm_eps), head)
    initialise(model, c.init_std)
    return model


def shape(config: BertShaped, offset: int = 0) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    return encoder(c, c.max_len + offset + c.n_types, pooled=c.head in ("classes", "none"))


def encoder(config: Any, rows: int, pooled: bool, tied: bool = True) -> Shape:
    """A stack of this shape with `rows` in its tables of positions and types, and a dense layer if `pooled`.

    The masked-LM head reads with the embedding's matrix if `tied`.
    """
    c, d = config, config.d_model
    classes = c.n_labels if c.head in ("classes", "tokens") else 0
    dense = 1 if pooled or c.head == "masked_lm" else 0
    words = c.vocab_size + 2 * d if c.head == "masked_lm" else 0
    return Shape(
        vocab_size=c.vocab_size, d_model=d, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=d // c.n_heads, d_ff=c.d_ff, feedforward_matrices=2, causal=False, learned_positions=rows,
        tied=tied or c.head != "masked_lm",
        vectors_per_layer=gpt_shaped.vectors(d, c.d_ff), other_vectors=2 * d + dense * d + words + classes,
        other_matrices=(dense * d + classes) * d,
    )  # fmt: skip


LAYER = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "feedforward.up": "intermediate.dense",
    "feedforward.down": "output.dense",
    "feedforward_norm": "output.LayerNorm",
}
IGNORED = (r".*embeddings\.(position_ids|token_type_ids)",)
OLDER = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
"""How files of the first years, bert-base's among them, spell the ends of these names."""


def names(config: BertShaped, model: str) -> dict[str, Stored]:
    """Our names and theirs of stem and stack, which stand under `model`."""
    tables = {"tokens": "word", "positions": "position", "types": "token_type"}
    patterns = {
        f"stem.{ours}.weight": Stored(f"{model}embeddings.{theirs}_embeddings.weight")
        for ours, theirs in tables.items()
    }
    patterns |= with_bias({"stem.norm": f"{model}embeddings.LayerNorm"})
    patterns |= gpt_shaped.named(f"{model}encoder.layer.{{}}.", LAYER)
    return per_layer(patterns, config.n_layers)


def to_hf(config: BertShaped, model_type: str, offset: int = 0) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return labels(c) | {
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "hidden_size": c.d_model,
        "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads,
        "intermediate_size": c.d_ff,
        "max_position_embeddings": c.max_len + offset,
        "type_vocab_size": c.n_types,
        "hidden_act": c.activation,
        "layer_norm_eps": c.norm_eps,
        "initializer_range": c.init_std,
        "hidden_dropout_prob": c.dropout,
        "attention_probs_dropout_prob": c.dropout,
    }


def from_hf(settings: dict[str, Any], model_type: str, heads: dict[str, str], offset: int = 0) -> dict[str, Any]:
    """Our settings from `transformers`', as a mapping. Raises UserError for what we do not do."""
    head = head_of(settings, heads)
    need(
        settings,
        model_type,
        {
            "position_embedding_type": ("absolute",),
            "is_decoder": (False,),
            "add_cross_attention": (False,),
            "tie_word_embeddings": (True,) if head == "masked_lm" else (True, False),
            "directionality": ("bidi",),
            "pooler_type": ("first_token_transform",),
        },
    )
    # In the multilingual files; no model was published with such a pooler.
    idle(settings, "pooler_fc_size", "pooler_num_attention_heads", "pooler_num_fc_layers", "pooler_size_per_head")
    missing(settings, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    activation = settings.get("hidden_act", "gelu")
    chosen(ACTIVATIONS, activation, "hidden_act", model_type)
    return {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["hidden_size"],
        "n_layers": settings["num_hidden_layers"],
        "n_heads": settings["num_attention_heads"],
        "d_ff": settings["intermediate_size"],
        "max_len": settings.get("max_position_embeddings", 512) - offset,
        "n_types": settings.get("type_vocab_size", 2),
        "activation": activation,
        "norm_eps": settings.get("layer_norm_eps", 1e-12),
        "init_std": settings.get("initializer_range", 0.02),
        "dropout": settings.get("hidden_dropout_prob", 0.1),
        "head": head,
        "n_labels": n_labels(settings),
    }
