"""tokenizer: learn a tokenizer from a corpus and encode every split of it as memory-mapped tokens."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from ...base.config import Count, Settings
from ...data import corpus, tokens
from ...data.tokenizer import Tokenizer
from ..artefact import Job


class Config(Settings):
    source: str = Field(alias="from")
    """Corpus to learn from (its train split) and to encode."""
    kind: Literal["bpe", "characters"] = "bpe"
    """Byte-level BPE, or one token for each character."""
    vocab_size: Count = Field(4096, ge=259)
    """Tokens of a BPE, control tokens included."""
    pattern: Literal["qwen2", "gpt2"] = "qwen2"
    """How text is split before merging; both are known to llama.cpp."""


REFERENCES = ("source",)


def run(config: Config, job: Job) -> dict[str, Any]:
    """Write tokenizer.json and its companions, and the tokens of each split."""
    source = job.input("source")
    splits = corpus.ledger_of(source).splits
    texts = (document.text for document in corpus.read(source, "train" if "train" in splits else None))
    if config.kind == "characters":
        tokenizer = Tokenizer.characters(texts)
    else:
        tokenizer = Tokenizer.train(texts, config.vocab_size, config.pattern)
    tokenizer.save(job.folder)
    facts = tokens.encode_corpus(source, tokenizer, job.folder)
    metrics: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    for split, fact in facts.items():
        metrics[f"{split}_tokens"] = fact["tokens"]
    held_out = facts.get("test") or facts.get("validation") or next(iter(facts.values()))
    metrics["bytes_per_token"] = held_out["bytes"] / max(held_out["tokens"], 1)
    return metrics
