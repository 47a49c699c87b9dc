"""ModernBERT: pre-norm, gated, rotary; two local layers between global ones (Warner et al. 2024).

Their code "unpads" a batch before it computes; here rows are packed with documents, and no place is wasted either.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from torch import Tensor, nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.attention import Attention
from ..nn.feedforward import GatedFeedForward
from ..nn.heads import ClassHead, First, Headless, LanguageHead, Mean
from ..nn.layout import Layout
from ..nn.masks import Bidirectional
from ..nn.mixing import Softmax
from ..nn.norm import LayerNorm
from ..nn.position import Rotary, frequencies
from ..nn.stack import Block, Stack
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._bert_shaped import Predict
from ._fresh import initialise
from ._stored import Equal, Stored, chosen, head_of, idle, labels, missing, n_labels, need, per_layer, with_bias

HF_MODEL_TYPE = "modernbert"
HF_ARCHITECTURES = {
    "ModernBertForMaskedLM": "masked_lm",
    "ModernBertModel": "none",
    "ModernBertForSequenceClassification": "classes",
    "ModernBertForTokenClassification": "tokens",
}
HF_PREFIX = "model."
HF_IGNORED = ()


class Config(Settings):
    """Shape of a ModernBERT."""

    vocab_size: Count = 50368
    """Number of words."""
    d_model: int = 768
    """Width of the residual stream."""
    n_layers: int = 22
    """Number of blocks."""
    n_heads: int = 12
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int = 1152
    """Inner width of the gated feed-forward part."""
    max_len: Count = 8192
    """Positions that the model was trained for."""
    global_every: int = 3
    """Every how many blocks one sees the whole text, the first of all among them; 1 for all."""
    window: int = 128
    """How many tokens a local block sees, half of them to each side."""
    global_theta: float = 160_000.0
    """Base of the rotary frequencies where the whole text is seen."""
    local_theta: float = 10_000.0
    """Base of the rotary frequencies in local blocks."""
    activation: str = "gelu"
    """What the gate goes through."""
    head_activation: str = "gelu"
    """The same in what stands before words or classes are scored."""
    pooling: Literal["cls", "mean"] = "cls"
    """What of a text its classes are told from: the first vector, or the mean."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    tie_word_embeddings: bool = True
    """The masked-LM head reads with the embedding's own matrix."""
    init_std: float = 0.02
    """Standard deviation of fresh weights; divided by sqrt(2 n_layers) where they write to the residual stream."""
    dropout: float = 0.0
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["masked_lm", "none", "classes", "tokens"] = "masked_lm"
    """What reads the stack out: scores of words, nothing, scores of classes of the text or of each token."""
    n_labels: int = 2
    """Classes, where the head has them."""


PRESETS = {
    "modernbert-nano": Config(
        vocab_size=256, d_model=128, n_layers=4, n_heads=4, d_ff=256, max_len=512, window=64, pooling="mean"
    ),
    "modernbert-base": Config(pooling="mean"),
    "modernbert-large": Config(d_model=1024, n_layers=28, n_heads=16, d_ff=2624, pooling="mean"),
}


class NormedTokens(Tokens):
    """Words, then a norm. int64 [B, T] -> [B, T, D]."""

    def __init__(self, tokens: nn.Embedding, norm: nn.Module, dropout: float) -> None:
        super().__init__(tokens, dropout)
        self.norm = norm

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        return self.norm(super().embed(tokens, layout))


class Pooled(nn.Module):
    """One vector a text, then what stands before its classes. [B, T, D] -> [B, D]."""

    def __init__(self, pool: nn.Module, then: nn.Module) -> None:
        super().__init__()
        self.pool, self.then = pool, then

    def forward(self, hidden: Tensor, layout: Layout) -> Tensor:
        return self.then(self.pool(hidden, layout))


def is_global(config: Config, layer: int) -> bool:
    """Whether a block sees the whole text."""
    return layer % config.global_every == 0


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    c, d_head = config, config.d_model // config.n_heads
    whole = (Bidirectional(), Rotary(frequencies(d_head, c.global_theta)))
    local = (Bidirectional(c.window // 2), Rotary(frequencies(d_head, c.local_theta)))
    blocks = [_block(c, layer, *(whole if is_global(c, layer) else local)) for layer in range(c.n_layers)]
    words = nn.Embedding(c.vocab_size, c.d_model)
    stem = NormedTokens(words, _norm(c), c.dropout)
    model = Transformer(stem, Stack(blocks, _norm(c)), _head(c, words))
    initialise(model, c.init_std, writers=c.init_std / math.sqrt(2 * c.n_layers))
    return model


def _norm(config: Config) -> LayerNorm:
    return LayerNorm(config.d_model, config.norm_eps, bias=False)


def _block(config: Config, layer: int, mask: nn.Module, position: nn.Module) -> Block:
    """A block; the first has no norm before attention, since the stem ends with one."""
    c, d = config, config.d_model
    attention = Attention(
        query=nn.Linear(d, d, bias=False), key=nn.Linear(d, d, bias=False), value=nn.Linear(d, d, bias=False),
        out=nn.Linear(d, d, bias=False), d_head=d // c.n_heads, layer=layer, mask=mask, position=position,
        mixer=Softmax(dropout=c.dropout),
    )  # fmt: skip
    feedforward = GatedFeedForward(
        nn.Linear(d, c.d_ff, bias=False),
        nn.Linear(d, c.d_ff, bias=False),
        nn.Linear(c.d_ff, d, bias=False),
        ACTIVATIONS[c.activation],
    )
    return Block(_norm(c) if layer else nn.Identity(), attention, _norm(c), feedforward, c.dropout)


def _head(config: Config, words: nn.Embedding) -> nn.Module:
    c = config
    if c.head == "none":
        return Headless()
    before = Predict(nn.Linear(c.d_model, c.d_model, bias=False), ACTIVATIONS[c.head_activation], _norm(c))
    if c.head == "classes":
        pool = Pooled(Mean() if c.pooling == "mean" else First(), before)
        return ClassHead(nn.Linear(c.d_model, c.n_labels), pool, c.dropout)
    if c.head == "tokens":
        return LanguageHead(nn.Linear(c.d_model, c.n_labels), nn.Sequential(before, nn.Dropout(c.dropout)))
    projection = nn.Linear(c.d_model, c.vocab_size)
    if c.tie_word_embeddings:
        projection.weight = words.weight
    return LanguageHead(projection, before)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c, d = config, config.d_model
    classes = c.n_labels if c.head in ("classes", "tokens") else 0
    dense = d if c.head != "none" else 0
    words = c.vocab_size if c.head == "masked_lm" else 0
    wide = 2 * (c.window // 2) + 1
    return Shape(
        vocab_size=c.vocab_size, d_model=d, n_layers=c.n_layers, n_heads=c.n_heads, n_kv_heads=c.n_heads,
        d_head=d // c.n_heads, d_ff=c.d_ff, feedforward_matrices=3, causal=False,
        tied=c.tie_word_embeddings or c.head != "masked_lm",
        windows=tuple(0 if is_global(c, layer) else wide for layer in range(c.n_layers)),
        vectors_per_layer=2 * d, other_vectors=d + dense + words + classes,  # two norms, but one in the first block
        other_matrices=(dense + classes) * d,
    )  # fmt: skip


_BEFORE = {"masked_lm": "head.transform", "classes": "head.pool.then", "tokens": "head.transform.0"}


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file: queries, keys and values in `Wqkv`, gate
    and what it gates in `Wi`."""
    model = "" if config.head == "none" else HF_PREFIX
    layer = {
        "attention_norm": Stored("attn_norm.weight"),
        "attention.query": Stored("attn.Wqkv.weight", part=0, cut=Equal(3, 0)),
        "attention.key": Stored("attn.Wqkv.weight", part=1, cut=Equal(3, 0)),
        "attention.value": Stored("attn.Wqkv.weight", part=2, cut=Equal(3, 0)),
        "attention.out": Stored("attn.Wo.weight"),
        "feedforward_norm": Stored("mlp_norm.weight"),
        "feedforward.gate": Stored("mlp.Wi.weight", part=0, cut=Equal(2, 0)),
        "feedforward.up": Stored("mlp.Wi.weight", part=1, cut=Equal(2, 0)),
        "feedforward.down": Stored("mlp.Wo.weight"),
    }
    patterns = {
        "stem.tokens.weight": Stored(f"{model}embeddings.tok_embeddings.weight"),
        "stem.norm.weight": Stored(f"{model}embeddings.norm.weight"),
        "stack.norm.weight": Stored(f"{model}final_norm.weight"),
    }
    patterns |= {f"stack.blocks.{{}}.{ours}.weight": at.moved(f"{model}layers.{{}}.") for ours, at in layer.items()}
    if config.head != "none":
        before = _BEFORE[config.head]
        patterns[f"{before}.dense.weight"] = Stored("head.dense.weight")
        patterns[f"{before}.norm.weight"] = Stored("head.norm.weight")
        patterns |= with_bias({"head.projection": "decoder" if config.head == "masked_lm" else "classifier"})
    if config.head == "masked_lm" and config.tie_word_embeddings:
        del patterns["head.projection.weight"]
    found = per_layer(patterns, config.n_layers)
    del found["stack.blocks.0.attention_norm.weight"]
    return found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that a file may hold of what stands elsewhere in it."""
    if config.head != "masked_lm" or not config.tie_word_embeddings:
        return {}
    return {"decoder.weight": "model.embeddings.tok_embeddings.weight"}


_KINDS = {"full_attention": "global", "sliding_attention": "local"}


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them, in its newer and its older spelling; ids of marks are left out."""
    c = config
    thetas = {"full_attention": c.global_theta, "sliding_attention": c.local_theta}
    return (
        labels(c)
        | {
            "model_type": HF_MODEL_TYPE,
            "vocab_size": c.vocab_size,
            "hidden_size": c.d_model,
            "num_hidden_layers": c.n_layers,
            "num_attention_heads": c.n_heads,
            "intermediate_size": c.d_ff,
            "max_position_embeddings": c.max_len,
            "layer_types": _layer_types(c.n_layers, c.global_every),
            "global_attn_every_n_layers": c.global_every,
            "local_attention": c.window,
            "rope_parameters": {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in thetas.items()},
            "global_rope_theta": c.global_theta,
            "local_rope_theta": c.local_theta,
            "hidden_activation": c.activation,
            "classifier_activation": c.head_activation,
            "classifier_pooling": c.pooling,
            "norm_eps": c.norm_eps,
            "tie_word_embeddings": c.tie_word_embeddings,
            "initializer_range": c.init_std,
            "embedding_dropout": c.dropout,
            "attention_dropout": c.dropout,
            "mlp_dropout": c.dropout,
            "classifier_dropout": c.dropout,
        }
        | dict.fromkeys(f"{word}_token_id" for word in ("pad", "bos", "eos", "cls", "sep"))
    )


def _layer_types(n_layers: int, every: int) -> list[str]:
    return ["sliding_attention" if layer % every else "full_attention" for layer in range(n_layers)]


def _every(settings: dict[str, Any]) -> int:
    """Every how many blocks one is global, from either spelling. Raises UserError for any other order of blocks."""
    n_layers, kinds = settings["num_hidden_layers"], settings.get("layer_types")
    later = [layer for layer, kind in enumerate(kinds or ()) if layer and kind == "full_attention"]
    every = settings.get("global_attn_every_n_layers", later[0] if later else n_layers if kinds else 3)
    if kinds is not None and kinds != _layer_types(n_layers, every):
        need({"layer_types": kinds}, HF_MODEL_TYPE, {"layer_types": (_layer_types(n_layers, every),)})
    return every


def _theta(settings: dict[str, Any], kind: str, usual: float) -> float:
    """Base of the rotary frequencies of a kind of blocks, from either spelling. Raises UserError for stretched ones."""
    older = settings.get(f"{_KINDS[kind]}_rope_theta") or usual
    found = (settings.get("rope_parameters") or {}).get(kind) or {}
    need(found, HF_MODEL_TYPE, {"rope_type": ("default",)})
    return found.get("rope_theta", older)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(
        settings,
        HF_MODEL_TYPE,
        {"attention_bias": (False,), "mlp_bias": (False,), "norm_bias": (False,), "decoder_bias": (True,),
         "classifier_bias": (False,), "rope_scaling": (None,)},
    )  # fmt: skip
    missing(settings, ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"))
    idle(settings, "position_embedding_type", "layer_norm_eps")  # BERT's, in the published files
    for key in ("hidden_activation", "classifier_activation"):
        chosen(ACTIVATIONS, settings.get(key, "gelu"), key, HF_MODEL_TYPE)
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["hidden_size"],
        n_layers=settings["num_hidden_layers"],
        n_heads=settings["num_attention_heads"],
        d_ff=settings["intermediate_size"],
        max_len=settings.get("max_position_embeddings", 8192),
        global_every=_every(settings),
        window=settings.get("local_attention", 128),
        global_theta=_theta(settings, "full_attention", 160_000.0),
        local_theta=_theta(settings, "sliding_attention", 10_000.0),
        activation=settings.get("hidden_activation", "gelu"),
        head_activation=settings.get("classifier_activation", "gelu"),
        pooling=settings.get("classifier_pooling", "cls"),
        norm_eps=settings.get("norm_eps", 1e-5),
        tie_word_embeddings=settings.get("tie_word_embeddings", True),
        init_std=settings.get("initializer_range", 0.02),
        dropout=settings.get("embedding_dropout", 0.0),
        head=head_of(settings, HF_ARCHITECTURES),
        n_labels=n_labels(settings),
    )
