"""DistilBERT: half of BERT's blocks, no token types and no pooler (Sanh et al. 2019)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.heads import ClassHead, First, Headless
from ..nn.layout import Layout
from ..nn.norm import LayerNorm
from ..nn.stems import PositionedTokens
from ..nn.transformer import Transformer
from . import _bert_shaped as bert_shaped
from . import _gpt_shaped as gpt_shaped
from ._fresh import initialise
from ._stored import Stored, chosen, head_of, idle, labels, missing, n_labels, per_layer, with_bias

HF_MODEL_TYPE = "distilbert"
HF_ARCHITECTURES = {
    "DistilBertForMaskedLM": "masked_lm",
    "DistilBertModel": "none",
    "DistilBertForSequenceClassification": "classes",
    "DistilBertForTokenClassification": "tokens",
}
HF_PREFIX = "distilbert."
HF_IGNORED = bert_shaped.IGNORED
HF_OLDER = bert_shaped.OLDER
NORM_EPS = 1e-12
"""Added to the variance in layer norm; no config of this family says another."""


class Config(Settings):
    """Shape of a DistilBERT."""

    vocab_size: Count = 30522
    """Number of words."""
    d_model: int = 768
    """Width of the residual stream."""
    n_layers: int = 6
    """Number of blocks."""
    n_heads: int = 12
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int = 3072
    """Inner width of the feed-forward part."""
    max_len: Count = 512
    """Positions that the model has."""
    activation: str = "gelu"
    """What stands between the feed-forward matrices."""
    tie_word_embeddings: bool = True
    """The masked-LM head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["masked_lm", "none", "classes", "tokens"] = "masked_lm"
    """What reads the stack out: scores of words, nothing, scores of classes of the text or of each token."""
    n_labels: int = 2
    """Classes, where the head has them."""


PRESETS = {
    "distilbert-base-uncased": Config(),
    "distilbert-base-cased": Config(vocab_size=28996),
    "distilbert-base-multilingual-cased": Config(vocab_size=119547),
}


class NormedTokens(PositionedTokens):
    """Words and positions, then a norm: BERT's stem without token types. int64 [B, T] -> [B, T, D]."""

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding, norm: nn.Module, dropout: float) -> None:
        super().__init__(tokens, positions, dropout)
        self.norm = norm

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.norm(super().embed(tokens, layout))


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = NormedTokens(words, nn.Embedding(c.max_len, c.d_model), LayerNorm(c.d_model, NORM_EPS), c.dropout)
    head: nn.Module = Headless()
    if c.head == "masked_lm":
        head = bert_shaped.masked_lm(c, words if c.tie_word_embeddings else None, NORM_EPS, c.activation)
    elif c.head == "classes":
        pool = First(nn.Sequential(nn.Linear(c.d_model, c.d_model), nn.ReLU()))
        head = ClassHead(nn.Linear(c.d_model, c.n_labels), pool, c.dropout)
    elif c.head == "tokens":
        head = bert_shaped.token_labels(c)
    model = Transformer(stem, bert_shaped.stack(c, NORM_EPS), head)
    initialise(model, c.init_std)
    return model


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return bert_shaped.encoder(config, config.max_len, pooled=config.head == "classes", tied=config.tie_word_embeddings)


_LAYER = {
    "attention.query": "attention.q_lin",
    "attention.key": "attention.k_lin",
    "attention.value": "attention.v_lin",
    "attention.out": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "feedforward.up": "ffn.lin1",
    "feedforward.down": "ffn.lin2",
    "feedforward_norm": "output_layer_norm",
}
_HEADS = {
    "masked_lm": {"head.transform.dense": "vocab_transform", "head.transform.norm": "vocab_layer_norm"},
    "none": {},
    "classes": {"head.pool.then.0": "pre_classifier", "head.projection": "classifier"},
    "tokens": {"head.projection": "classifier"},
}


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    model = "" if config.head == "none" else HF_PREFIX
    patterns = {
        "stem.tokens.weight": Stored(f"{model}embeddings.word_embeddings.weight"),
        "stem.positions.weight": Stored(f"{model}embeddings.position_embeddings.weight"),
    }
    patterns |= with_bias({"stem.norm": f"{model}embeddings.LayerNorm"})
    patterns |= gpt_shaped.named(f"{model}transformer.layer.{{}}.", _LAYER)
    patterns |= with_bias(_HEADS[config.head])
    if config.head == "masked_lm":
        patterns["head.projection.bias"] = Stored("vocab_projector.bias")
        if not config.tie_word_embeddings:
            patterns["head.projection.weight"] = Stored("vocab_projector.weight")
    return per_layer(patterns, config.n_layers)


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that a file may hold of what stands elsewhere in it."""
    if config.head != "masked_lm" or not config.tie_word_embeddings:
        return {}
    return {"vocab_projector.weight": "distilbert.embeddings.word_embeddings.weight"}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return labels(c) | {
        "model_type": HF_MODEL_TYPE,
        "vocab_size": c.vocab_size,
        "dim": c.d_model,
        "n_layers": c.n_layers,
        "n_heads": c.n_heads,
        "hidden_dim": c.d_ff,
        "max_position_embeddings": c.max_len,
        "activation": c.activation,
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.init_std,
        "dropout": c.dropout,
        "attention_dropout": c.dropout,
        "seq_classif_dropout": c.dropout,
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    # Sinusoidal positions only decide fresh weights: what was trained stands in the file either way.
    idle(settings, "sinusoidal_pos_embds", "tie_weights_")
    missing(settings, ("vocab_size", "dim", "n_layers", "n_heads", "hidden_dim"))
    activation = settings.get("activation", "gelu")
    chosen(ACTIVATIONS, activation, "activation", HF_MODEL_TYPE)
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["dim"],
        n_layers=settings["n_layers"],
        n_heads=settings["n_heads"],
        d_ff=settings["hidden_dim"],
        max_len=settings.get("max_position_embeddings", 512),
        activation=activation,
        tie_word_embeddings=settings.get("tie_word_embeddings", True),
        init_std=settings.get("initializer_range", 0.02),
        dropout=settings.get("dropout", 0.1),
        head=head_of(settings, HF_ARCHITECTURES),
        n_labels=n_labels(settings),
    )
