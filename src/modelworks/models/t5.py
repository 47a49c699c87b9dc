"""T5 and Flan-T5: relative positions as a bias of the scores, unscaled attention, no biases (Raffel et al. 2020)."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.attention import Attention, CrossAttention
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.feedforward import FeedForward, GatedFeedForward
from ..nn.heads import Headless, LanguageHead
from ..nn.layout import Layout
from ..nn.masks import Bidirectional, Causal, Mask, Seen
from ..nn.mixing import Softmax
from ..nn.norm import RMSNorm
from ..nn.position import Unrotated
from ..nn.stack import Block, CrossBlock, Stack
from ..nn.stems import Tokens
from ..nn.transformer import Transformer
from ._fresh import initialise
from ._stored import Stored, chosen, head_of, missing, need, per_layer

HF_MODEL_TYPE = "t5"
HF_ARCHITECTURES = {"T5ForConditionalGeneration": "language", "T5Model": "none"}
HF_PREFIX = ""
HF_IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)
"""A bias of cross-attention that the first files hold and nobody uses."""


class Config(Settings):
    """Shape of a T5."""

    vocab_size: Count = 32_128
    """Number of words, of source and target together."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks of the encoder."""
    n_decoder_layers: int
    """Blocks of the decoder."""
    n_heads: int
    """Attention heads."""
    d_head: int = 64
    """Width of a head; n_heads heads need not be as wide as the model."""
    d_ff: int
    """Inner width of the feed-forward part."""
    n_buckets: Count = 32
    """Distances that the bias tells apart."""
    max_distance: Count = 128
    """From here on all distances are one."""
    feedforward: str = "relu"
    """'relu', or 'gated-gelu' as in T5 1.1 and Flan."""
    tie_word_embeddings: bool = True
    """The head reads with the embedding's own matrix."""
    scale_outputs: bool = True
    """What the head reads is divided by sqrt(d_model): the first T5 does, 1.1 and Flan do not."""
    max_len: Count = 512
    """Longest text in tokens that the model is meant for; the bias has no end."""
    norm_eps: float = 1e-6
    """Added to the mean square in RMSNorm."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none"] = "language"
    """What reads the decoder out: scores of the next word, or nothing."""


def _first(d_model: int, n_layers: int, n_heads: int, d_ff: int, d_head: int = 64) -> Config:
    return Config(
        d_model=d_model, n_layers=n_layers, n_decoder_layers=n_layers, n_heads=n_heads, d_ff=d_ff, d_head=d_head
    )


def _flan(d_model: int, n_layers: int, n_heads: int, d_ff: int) -> Config:
    changes = {"feedforward": "gated-gelu", "tie_word_embeddings": False, "scale_outputs": False}
    return _first(d_model, n_layers, n_heads, d_ff).model_copy(update=changes)


PRESETS = {
    "t5-nano": _first(128, 3, 4, 512, d_head=32).model_copy(update={"vocab_size": 4096}),
    "t5-small": _first(512, 6, 8, 2048),
    "t5-base": _first(768, 12, 12, 3072),
    "t5-large": _first(1024, 24, 16, 4096),
    "t5-3b": _first(1024, 24, 32, 16384, d_head=128),
    "t5-11b": _first(1024, 24, 128, 65536, d_head=128),
    "flan-t5-small": _flan(512, 8, 6, 1024),
    "flan-t5-base": _flan(768, 12, 12, 2048),
    "flan-t5-large": _flan(1024, 24, 16, 2816),
    "flan-t5-xl": _flan(2048, 24, 32, 5120),
    "flan-t5-xxl": _flan(4096, 24, 64, 10240),
}


class Relative(nn.Module):
    """A mask that adds a learned bias for the distance, one for each head; all blocks of a side share it.

    Half of the buckets are single distances, the others grow with the logarithm up to `max_distance`; a side
    that looks both ways has half of them for each direction (section 2.1 of the paper and its code).
    """

    fixed = False
    causal = False

    def __init__(self, mask: Mask, n_heads: int, n_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.mask, self.bias = mask, nn.Embedding(n_buckets, n_heads)
        self.max_distance = max_distance

    def forward(self, layout: Layout, dtype: torch.dtype) -> Seen:
        return layout.once((self, dtype), lambda: self._seen(layout, dtype))

    def _seen(self, layout: Layout, dtype: torch.dtype) -> Seen:
        distance = self.mask.distances(layout)  # [T, S], or [B, T, S] where rows differ
        bias = F.embedding(self._bucket(distance), self.bias.weight).movedim(-1, -3).to(dtype)
        bias = bias if bias.dim() == 4 else bias[None]
        seen, is_causal = self.mask(layout, dtype)
        if is_causal:
            seen = self.mask.square(layout, dtype)
        return (bias if seen is None else bias + seen), False

    def _bucket(self, distance: Tensor) -> Tensor:
        count, start = self.bias.num_embeddings, 0
        if not self.mask.causal:
            count //= 2
            start = torch.where(distance < 0, count, 0)
            distance = distance.abs()
        distance = distance.clamp_min(0)
        exact = count // 2
        far = exact + (
            (distance.float().clamp_min(1) / exact).log() / math.log(self.max_distance / exact) * (count - exact)
        ).to(torch.int64)
        return start + torch.where(distance < exact, distance, far.clamp_max(count - 1))


class ScaledHead(LanguageHead):
    """Scores of the next word from `scale` times what the stack says."""

    def __init__(self, projection: nn.Linear, scale: float) -> None:
        super().__init__(projection)
        self.scale = scale

    def forward(self, hidden: Tensor) -> Tensor:
        return super().forward(hidden * self.scale)

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> Tensor:
        return super().cross_entropy(rows * self.scale, labels)


def build(config: Config) -> EncoderDecoder:
    """The model with fresh weights, on torch's current device."""
    c = config
    words = nn.Embedding(c.vocab_size, c.d_model)
    head: nn.Module = Headless()
    if c.head == "language":
        projection = nn.Linear(c.d_model, c.vocab_size, bias=False)
        if c.tie_word_embeddings:
            projection.weight = words.weight
        head = ScaledHead(projection, c.d_model**-0.5 if c.scale_outputs else 1.0)
    model = EncoderDecoder(
        Transformer(Tokens(words, c.dropout), _stack(c, c.n_layers, Bidirectional(), Block), Headless()),
        Transformer(Tokens(words, c.dropout), _stack(c, c.n_decoder_layers, Causal(), CrossBlock), head),
    )
    initialise(model, c.d_model**-0.5, writers=0.0)
    nn.init.normal_(words.weight, std=1.0)
    return model


def _stack(config: Config, n_layers: int, mask: Mask, kind: type[Block]) -> Stack:
    c = config
    relative = Relative(mask, c.n_heads, c.n_buckets, c.max_distance)
    inner = c.n_heads * c.d_head

    def matrices() -> dict[str, nn.Linear]:
        shapes = {"query": (c.d_model, inner), "key": (c.d_model, inner), "value": (c.d_model, inner)}
        return {part: nn.Linear(*sizes, bias=False) for part, sizes in (shapes | {"out": (inner, c.d_model)}).items()}

    def block(layer: int) -> Block:
        facts: dict[str, Any] = {"d_head": c.d_head, "layer": layer}
        parts: dict[str, Any] = {
            "attention": Attention(
                **matrices(), **facts, mask=relative, position=Unrotated(), mixer=Softmax(1.0, c.dropout)
            ),
            "feedforward": _feedforward(c),
        }
        if kind is CrossBlock:
            parts["cross"] = CrossAttention(**matrices(), **facts, mixer=Softmax(1.0, c.dropout))
        norms = {f"{part}_norm": RMSNorm(c.d_model, c.norm_eps) for part in parts}
        return kind(**parts, **norms, dropout=c.dropout)

    return Stack([block(layer) for layer in range(n_layers)], RMSNorm(c.d_model, c.norm_eps))


def _feedforward(config: Config) -> nn.Module:
    c = config
    down = nn.Linear(c.d_ff, c.d_model, bias=False)
    ups = [nn.Linear(c.d_model, c.d_ff, bias=False) for _ in range(_matrices(c) - 1)]
    activation = ACTIVATIONS[_activation(c.feedforward)]
    return FeedForward(*ups, down, activation) if len(ups) == 1 else GatedFeedForward(*ups, down, activation)


def _matrices(config: Config) -> int:
    return 3 if config.feedforward.startswith("gated-") else 2


def _activation(name: str) -> str:
    """'gated-gelu' means GELU by tanh, by an old habit of the files."""
    return "gelu_new" if name == "gated-gelu" else name.removeprefix("gated-")


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    c = config
    shared: dict[str, Any] = {
        "d_model": c.d_model, "n_heads": c.n_heads, "n_kv_heads": c.n_heads, "d_head": c.d_head, "d_ff": c.d_ff,
        "feedforward_matrices": _matrices(c), "other_vectors": c.d_model + c.n_buckets * c.n_heads,
    }  # fmt: skip
    reads = Shape(**shared, vocab_size=0, n_layers=c.n_layers, tied=True, causal=False, vectors_per_layer=2 * c.d_model)
    return Shape(
        **shared, vocab_size=c.vocab_size, n_layers=c.n_decoder_layers, cross_attention=True,
        tied=c.tie_word_embeddings or c.head == "none", vectors_per_layer=3 * c.d_model, also=(reads,),
    )  # fmt: skip


def _layer(config: Config, crossed: bool) -> dict[str, str]:
    names = {"attention_norm": "layer.0.layer_norm", "feedforward_norm": f"layer.{1 + crossed}.layer_norm"}
    for part, letter in {"query": "q", "key": "k", "value": "v", "out": "o"}.items():
        names[f"attention.{part}"] = f"layer.0.SelfAttention.{letter}"
        if crossed:
            names[f"cross.{part}"] = f"layer.1.EncDecAttention.{letter}"
    if crossed:
        names["cross_norm"] = "layer.1.layer_norm"
    dense = f"layer.{1 + crossed}.DenseReluDense"
    ups = {"feedforward.up": "wi"} if _matrices(config) == 2 else {"feedforward.gate": "wi_0", "feedforward.up": "wi_1"}
    return names | {ours: f"{dense}.{theirs}" for ours, theirs in (ups | {"feedforward.down": "wo"}).items()}


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    found = {"encoder.stem.tokens.weight": Stored("shared.weight")}
    for side, depth in (("encoder", config.n_layers), ("decoder", config.n_decoder_layers)):
        names = {
            f"{side}.stack.blocks.{{}}.{ours}.weight": Stored(f"{side}.block.{{}}.{theirs}.weight")
            for ours, theirs in _layer(config, side == "decoder").items()
        }
        bias = f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        found |= per_layer(names, depth)
        found[f"{side}.stack.blocks.0.attention.mask.bias.weight"] = Stored(bias)
        found[f"{side}.stack.norm.weight"] = Stored(f"{side}.final_layer_norm.weight")
    if config.head == "language" and not config.tie_word_embeddings:
        found["decoder.head.projection.weight"] = Stored("lm_head.weight")
    return found


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that some files hold of a tensor, and the name of the original."""
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    if config.head == "language" and config.tie_word_embeddings:
        copies.append("lm_head.weight")
    return dict.fromkeys(copies, "shared.weight")


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    c = config
    return {
        "model_type": HF_MODEL_TYPE,
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "d_kv": c.d_head,
        "d_ff": c.d_ff,
        "num_layers": c.n_layers,
        "num_decoder_layers": c.n_decoder_layers,
        "num_heads": c.n_heads,
        "relative_attention_num_buckets": c.n_buckets,
        "relative_attention_max_distance": c.max_distance,
        "feed_forward_proj": c.feedforward,
        "layer_norm_epsilon": c.norm_eps,
        "dropout_rate": c.dropout,
        "n_positions": c.max_len,
        "tie_word_embeddings": c.tie_word_embeddings,
        "scale_decoder_outputs": c.scale_outputs,
        "is_encoder_decoder": True,
        "pad_token_id": 0,
        "decoder_start_token_id": 0,
    }


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    need(settings, HF_MODEL_TYPE, {"is_decoder": (False,)})
    missing(settings, ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads"))
    feedforward = settings.get("feed_forward_proj", "relu")
    chosen(ACTIVATIONS, _activation(feedforward), "feed_forward_proj", HF_MODEL_TYPE)
    said_again = {"dense_act_fn": (_activation(feedforward),), "is_gated_act": (feedforward.startswith("gated-"),)}
    need(settings, HF_MODEL_TYPE, said_again)
    tied = settings.get("tie_word_embeddings", True)
    return Config(
        vocab_size=settings["vocab_size"],
        d_model=settings["d_model"],
        d_head=settings["d_kv"],
        d_ff=settings["d_ff"],
        n_layers=settings["num_layers"],
        n_decoder_layers=settings.get("num_decoder_layers") or settings["num_layers"],
        n_heads=settings["num_heads"],
        n_buckets=settings.get("relative_attention_num_buckets", 32),
        max_distance=settings.get("relative_attention_max_distance", 128),
        feedforward=feedforward,
        norm_eps=settings.get("layer_norm_epsilon", 1e-6),
        dropout=settings.get("dropout_rate", 0.1),
        max_len=settings.get("n_positions", 512),
        tie_word_embeddings=tied,
        scale_outputs=settings.get("scale_decoder_outputs", tied),
        head=head_of(settings, HF_ARCHITECTURES),
    )
