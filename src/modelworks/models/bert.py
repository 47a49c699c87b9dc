"""BERT: an encoder that learns by filling in masked words (Devlin et al. 2019)."""

from __future__ import annotations

from typing import Any, Literal

from torch import nn

from ..nn.arithmetic import Shape
from ..nn.heads import First
from ..nn.transformer import Transformer
from . import _bert_shaped as bert_shaped
from ._bert_shaped import BertShaped
from ._stored import Stored, with_bias

HF_MODEL_TYPE = "bert"
HF_ARCHITECTURES = {
    "BertForMaskedLM": "masked_lm",
    "BertModel": "none",
    "BertForSequenceClassification": "classes",
    "BertForTokenClassification": "tokens",
    "BertForPreTraining": "masked_lm",
}
HF_PREFIX = "bert."
HF_IGNORED = (*bert_shaped.IGNORED, r"cls\.seq_relationship\.(weight|bias)", r"(bert\.)?pooler\.dense\.(weight|bias)")
"""Also what stands beside the masked-LM head in files from pre-training: the pooler and its next-sentence head."""
HF_OLDER = bert_shaped.OLDER


class Config(BertShaped):
    """Shape of a BERT."""

    head: Literal["masked_lm", "none", "classes", "tokens"] = "masked_lm"
    """What reads the stack out: scores of words, nothing (but the pooler), scores of classes of the text or of
    each token."""


_LARGE = Config(d_model=1024, n_layers=24, n_heads=16, d_ff=4096)
PRESETS = {
    "bert-nano": Config(vocab_size=256, d_model=128, n_layers=4, n_heads=4, d_ff=512, max_len=256, dropout=0.0),
    "bert-minilm-l6-h384": Config(d_model=384, n_layers=6, d_ff=1536),
    "bert-base-uncased": Config(),
    "bert-base-cased": Config(vocab_size=28996),
    "bert-base-multilingual-cased": Config(vocab_size=119547),
    "bert-large-uncased": _LARGE,
    "bert-large-cased": _LARGE.model_copy(update={"vocab_size": 28996}),
}


def pooler(config: Config) -> nn.Module:
    """The first vector through a dense layer and tanh."""
    return First(nn.Sequential(nn.Linear(config.d_model, config.d_model), nn.Tanh()))


def build(config: Config) -> Transformer:
    """The model with fresh weights, on torch's current device."""
    headless = pooler(config) if config.head == "none" else None
    return bert_shaped.assemble(config, pool=lambda: pooler(config), headless=headless, predict=config.activation)


def shape(config: Config) -> Shape:
    """What `nn.arithmetic` needs to know."""
    return bert_shaped.shape(config)


_PREDICTIONS = with_bias(
    {
        "head.transform.dense": "cls.predictions.transform.dense",
        "head.transform.norm": "cls.predictions.transform.LayerNorm",
    }
) | {"head.projection.bias": Stored("cls.predictions.bias")}


def hf_names(config: Config) -> dict[str, Stored]:
    """Our parameter names and where each stands in a Hugging Face file."""
    prefix = "" if config.head == "none" else HF_PREFIX
    found = bert_shaped.names(config, prefix)
    if config.head == "masked_lm":
        return found | _PREDICTIONS
    if config.head != "tokens":
        found |= with_bias({"head.pool.then.0": f"{prefix}pooler.dense"})
    return found if config.head == "none" else found | with_bias({"head.projection": "classifier"})


def hf_tied(config: Config) -> dict[str, str]:
    """Copies that a file may hold of what stands elsewhere in it."""
    if config.head != "masked_lm":
        return {}
    return {
        "cls.predictions.decoder.weight": "bert.embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    }


def to_hf(config: Config) -> dict[str, Any]:
    """The settings as `transformers` names them."""
    return bert_shaped.to_hf(config, HF_MODEL_TYPE)


def from_hf(settings: dict[str, Any]) -> Config:
    """Our settings from `transformers`'. Raises UserError for what we do not do."""
    return Config(**bert_shaped.from_hf(settings, HF_MODEL_TYPE, HF_ARCHITECTURES))
