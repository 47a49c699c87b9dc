"""The shape of an encoder-decoder as BART's files lay it out: BART, Marian (the original transformer) and Whisper."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..base.config import Count, Settings
from ..nn.activation import ACTIVATIONS
from ..nn.arithmetic import Shape
from ..nn.attention import Attention, CrossAttention
from ..nn.encoder_decoder import EncoderDecoder
from ..nn.feedforward import FeedForward
from ..nn.heads import CrossEntropy, Headless, LanguageHead
from ..nn.masks import Bidirectional, Causal
from ..nn.mixing import Softmax
from ..nn.norm import LayerNorm
from ..nn.position import Unrotated
from ..nn.stack import Block, CrossBlock, Stack
from ..nn.transformer import Transformer
from ._stored import Stored, chosen, head_of, missing, need, per_layer, with_bias

EPS = 1e-5
"""These families do not set it."""


class Seq2SeqShaped(Settings):
    """Shape of an encoder-decoder."""

    vocab_size: Count
    """Number of words, of source and target together."""
    d_model: int
    """Width of the residual stream."""
    n_layers: int
    """Blocks of the encoder."""
    n_decoder_layers: int
    """Blocks of the decoder."""
    n_heads: int
    """Attention heads; d_model must be a multiple of it."""
    d_ff: int
    """Inner width of the feed-forward part."""
    max_len: Count
    """Positions that source and target have."""
    activation: str = "gelu"
    """What stands between the feed-forward matrices."""
    scale_embedding: bool = False
    """Embeddings are multiplied by sqrt(d_model)."""
    init_std: float = 0.02
    """Standard deviation of fresh weights."""
    dropout: float = 0.1
    """Share dropped from embeddings, attention and residual branches, in training only."""
    head: Literal["language", "none"] = "language"
    """What reads the decoder out: scores of the next word, or nothing."""


AnyShape = TypeVar("AnyShape", bound=Seq2SeqShaped)


class ShiftedHead(LanguageHead):
    """Scores of the next word, moved by a vector that nobody trains (`final_logits_bias`, [1, V])."""

    def __init__(self, projection: nn.Linear) -> None:
        super().__init__(projection)
        self.register_buffer("bias", torch.zeros(1, projection.out_features))

    def forward(self, hidden: Tensor) -> Tensor:
        return self.projection(hidden) + self.bias

    def cross_entropy(self, rows: Tensor, labels: Tensor) -> Tensor:
        return CrossEntropy.apply(rows, self.projection.weight, labels, self.bias.flatten())


def _matrices(config: Seq2SeqShaped, key_bias: bool) -> dict[str, nn.Linear]:
    d = config.d_model
    return {part: nn.Linear(d, d, bias=key_bias or part != "key") for part in ("query", "key", "value", "out")}


def _block(
    config: Seq2SeqShaped, layer: int, mask: nn.Module, kind: type[Block], crossed: bool, key_bias: bool
) -> Block:
    c, d_head = config, config.d_model // config.n_heads
    norm = lambda: LayerNorm(c.d_model, EPS)  # noqa: E731
    parts: dict[str, Any] = {
        "attention_norm": norm(),
        "attention": Attention(
            **_matrices(c, key_bias), d_head=d_head, layer=layer, mask=mask, position=Unrotated(),
            mixer=Softmax(dropout=c.dropout),
        ),
        "feedforward_norm": norm(),
        "feedforward": FeedForward(
            nn.Linear(c.d_model, c.d_ff), nn.Linear(c.d_ff, c.d_model), ACTIVATIONS[c.activation]
        ),
        "dropout": c.dropout,
    }  # fmt: skip
    if crossed:
        cross = CrossAttention(**_matrices(c, key_bias), d_head=d_head, layer=layer, mixer=Softmax(dropout=c.dropout))
        parts |= {"cross_norm": norm(), "cross": cross}
    return kind(**parts)


def assemble(
    config: Seq2SeqShaped,
    *,
    encoder_stem: nn.Module,
    decoder_stem: nn.Module,
    words: nn.Embedding,
    kinds: tuple[type[Block], type[CrossBlock]],
    norm: Callable[[], nn.Module] = nn.Identity,
    head: type[LanguageHead] = ShiftedHead,
    key_bias: bool = True,
) -> EncoderDecoder:
    """The model on torch's current device; `kinds` order the blocks of both sides, `norm` ends both stacks."""
    c = config
    both, causal = Bidirectional(), Causal()
    encoder = Stack([_block(c, n, both, kinds[0], False, key_bias) for n in range(c.n_layers)], norm())
    decoder = Stack([_block(c, n, causal, kinds[1], True, key_bias) for n in range(c.n_decoder_layers)], norm())
    reads: nn.Module = Headless()
    if c.head == "language":
        projection = nn.Linear(c.d_model, c.vocab_size, bias=False)
        projection.weight = words.weight
        reads = head(projection)
    return EncoderDecoder(Transformer(encoder_stem, encoder, Headless()), Transformer(decoder_stem, decoder, reads))


def shape(config: Seq2SeqShaped, encoder: dict[str, int], decoder: dict[str, int], key_bias: bool = True) -> Shape:
    """What `nn.arithmetic` needs to know; what a side has outside its blocks is given."""
    c = config
    shared: dict[str, Any] = {
        "d_model": c.d_model, "n_heads": c.n_heads, "n_kv_heads": c.n_heads, "d_head": c.d_model // c.n_heads,
        "d_ff": c.d_ff, "feedforward_matrices": 2, "tied": True,
    }  # fmt: skip
    biases, norm = (4 if key_bias else 3) * c.d_model, 2 * c.d_model
    plain = biases + c.d_ff + c.d_model + 2 * norm
    reads = Shape(
        **shared | {"vocab_size": 0, "n_layers": c.n_layers, "causal": False, "vectors_per_layer": plain} | encoder
    )
    writes = {"vocab_size": c.vocab_size, "n_layers": c.n_decoder_layers, "cross_attention": True}
    return Shape(**shared | writes | {"vectors_per_layer": plain + biases + norm} | decoder, also=(reads,))


_ENCODER = {
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.out": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "feedforward.up": "fc1",
    "feedforward.down": "fc2",
    "feedforward_norm": "final_layer_norm",
}
_DECODER = _ENCODER | {
    "cross.query": "encoder_attn.q_proj",
    "cross.key": "encoder_attn.k_proj",
    "cross.value": "encoder_attn.v_proj",
    "cross.out": "encoder_attn.out_proj",
    "cross_norm": "encoder_attn_layer_norm",
}
HF_PREFIX = "model."


def hf_names(config: Seq2SeqShaped, own: dict[str, Stored], key_bias: bool = True) -> dict[str, Stored]:
    """Our parameter names and theirs: the blocks of both sides, and the family's `own`."""
    found = dict(own)
    for side, parts, depth in (("encoder", _ENCODER, config.n_layers), ("decoder", _DECODER, config.n_decoder_layers)):
        names = {
            f"{side}.stack.blocks.{{}}.{ours}": place.moved(f"model.{side}.layers.{{}}.")
            for ours, place in with_bias(parts).items()
            if key_bias or not ours.endswith(".key.bias")
        }
        found |= per_layer(names, depth)
    return found


def to_hf(config: Seq2SeqShaped, model_type: str, **own: Any) -> dict[str, Any]:
    """The settings as `transformers` names them, those of the family (`own`) last."""
    c = config
    shared = {
        "model_type": model_type,
        "vocab_size": c.vocab_size,
        "d_model": c.d_model,
        "encoder_layers": c.n_layers,
        "decoder_layers": c.n_decoder_layers,
        "encoder_attention_heads": c.n_heads,
        "decoder_attention_heads": c.n_heads,
        "encoder_ffn_dim": c.d_ff,
        "decoder_ffn_dim": c.d_ff,
        "activation_function": c.activation,
        "scale_embedding": c.scale_embedding,
        "init_std": c.init_std,
        "dropout": c.dropout,
        "attention_dropout": c.dropout,
        "activation_dropout": 0.0,
        "is_encoder_decoder": True,
        "tie_word_embeddings": True,
    }
    return shared | own


def from_hf(
    kind: type[AnyShape], settings: dict[str, Any], model_type: str, heads: dict[str, str], **own: Any
) -> AnyShape:
    """Our settings from `transformers`', those of the family (`own`) last. Raises UserError for what we do not do."""
    missing(settings, ("vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads"))
    need(
        settings, model_type,
        {
            "decoder_attention_heads": (settings["encoder_attention_heads"],),
            "decoder_ffn_dim": (settings.get("encoder_ffn_dim"),),
            "tie_word_embeddings": (True,),
            "is_decoder": (False,),
            "normalize_before": (False,),
            "add_cross_attention": (False,),
        },
    )  # fmt: skip
    for key in ("num_hidden_layers", "attention_dropout", "activation_dropout"):
        settings.get(key)  # said again, or only of training
    activation = settings.get("activation_function", "gelu")
    chosen(ACTIVATIONS, activation, "activation_function", model_type)
    fields: dict[str, Any] = {
        "vocab_size": settings["vocab_size"],
        "d_model": settings["d_model"],
        "n_layers": settings["encoder_layers"],
        "n_decoder_layers": settings["decoder_layers"],
        "n_heads": settings["encoder_attention_heads"],
        "d_ff": settings["encoder_ffn_dim"],
        "activation": activation,
        "scale_embedding": settings.get("scale_embedding", False),
        "init_std": settings.get("init_std", 0.02),
        "dropout": settings.get("dropout", 0.1),
        "head": head_of(settings, heads),
    }
    if "max_position_embeddings" in settings:
        fields["max_len"] = settings["max_position_embeddings"]
    return kind(**fields | own)
