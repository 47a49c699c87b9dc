"""RoBERTa: BERT trained longer; one token type, positions counted on from the padding's id (Liu et al. 2019)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..base.config import Count
from ..nn.arithmetic import Shape
from ..nn.heads import First
from ..nn.transformer import Transformer
from . import _bert_shaped as bert_shaped
from ._bert_shaped import BertShaped
from ._stored import Stored, need, with_bias

HF_MODEL_TYPE = "roberta"
HF_ARCHITECTURES = {
    "RobertaForMaskedLM": "masked_lm",
    "RobertaModel": "none",
    "RobertaForSequenceClassification": "classes",
    "RobertaForTokenClassification": "tokens",
}
HF_PREFIX = "roberta."
HF_IGNORED = (*bert_shaped.IGNORED, r"(roberta\.)?pooler\.dense\.(weight|bias)")
"""Also the pooler, which some files have though no head reads it."""
HF_OLDER = bert_shaped.OLDER


class Config(BertShaped):
    """Shape of a RoBERTa."""

    vocab_size: Count = 50265
    """Number of words."""
    n_types: int = 1
    """Token types: RoBERTa knows one."""
    norm_eps: float = 1e-5
    """Added to the variance in layer norm."""
    pad_id: int = 1
    """Id of the padding word: rows 0 to pad_id of the table of positions belong to no place in a text."""
    head: Literal["masked_lm", "none", "classes", "tokens"] = "masked_lm"
    """What reads the stack out: scores of words, nothing (but BERT's pooler), scores of classes of the text or of
    each token."""


PRESETS = {
    "roberta-base": Config(),
    "roberta-large": Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096),
    "distilroberta-base": Config(n_layers=6),
}


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    d = config.d_model
    pooler = First(nn.Sequential(nn.Linear(d, d), nn.Tanh())) if config.head == "none" else None
    return bert_shaped.assemble(
        config,
        pool=lambda: First(nn.Sequential(nn.Dropout(config.dropout), nn.Linear(d, d), nn.Tanh())),
        headless=pooler,
        predict="gelu",  # whatever the blocks have
        offset=config.pad_id + 1,
    )


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return bert_shaped.shape(config, config.pad_id + 1)


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    found = bert_shaped.names(config, "" if config.head == "none" else HF_PREFIX)
    if config.head == "masked_lm":
        found["head.projection.bias"] = Stored("lm_head.bias")
        heads = {"head.transform.dense": "lm_head.dense", "head.transform.norm": "lm_head.layer_norm"}
    elif config.head == "classes":
        heads = {"head.pool.then.1": "classifier.dense", "head.projection": "classifier.out_proj"}
    else:
        heads = {"head.projection": "classifier"} if config.head == "tokens" else {"head.pool.then.0": "pooler.dense"}
    return found | with_bias(heads)


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that a file may hold of what stands elsewhere in it."""
    if config.head != "masked_lm":
        return {}
    return {
        "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return bert_shaped.to_hf(config, HF_MODEL_TYPE, config.pad_id + 1) | {"pad_token_id": config.pad_id}


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    return Config(**fields(settings, HF_MODEL_TYPE, HF_ARCHITECTURES))


def fields(settings: dict[str, Any], model_type: str, heads: dict[str, str]) -> dict[str, Any]:
    """The same as a mapping, for families that share this one's maths."""
    pad = settings.get("pad_token_id", 1)
    need({"pad_token_id": isinstance(pad, int)}, model_type, {"pad_token_id": (True,)})
    return bert_shaped.from_hf(settings, model_type, heads, pad + 1) | {"pad_id": pad}
