"""Next-token prediction on documents: every token of the corpus is predicted once an epoch (pre-training)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field
from torch import Tensor, nn

from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError
from modelworks.base.protocols import Batch, Context, Objective
from modelworks.data import corpus, doubts, tokens
from modelworks.data.loader import Documents, Loader
from modelworks.data.order import shuffled
from modelworks.data.tokens import TokenData


class Config(Settings):
    """How the language model is trained and looked at."""

    evaluate_tokens: Count = Field(100_000, ge=0)
    """Validation tokens looked at each time, whole documents chosen by the seed (0: all)."""


EVALUATION_TOKENS = 4096
"""Tokens of an evaluation batch at least: without gradients there is room, and small batches waste time."""


class CausalLM:
    """Cross-entropy of the next token, in nats.

    A batch: `tokens`, `labels`, `documents`, each int64 [rows, max_len].
    """

    splittable = True

    def __init__(
        self, train: Loader, validation: Loader | None, validation_bytes: int = 0, unigram: float | None = None
    ) -> None:
        self.train, self.validation, self.validation_bytes, self.unigram = train, validation, validation_bytes, unigram

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        """Packed rows in the loader's order."""
        yield from self.train

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Sum of nats over the batch's labels.

        Of a mixture of experts also `balance`, how unevenly it routed this batch, for each label alike: it is part
        of the loss that is trained, and of no evaluation.
        """
        output = self._run(model, batch)
        nats = output.losses.sum()
        if output.balance is None:
            return {"loss": nats}
        balance = output.balance * batch.weight
        return {"loss": nats + balance, "balance": balance}

    def _run(self, model: nn.Module, batch: Batch) -> Any:
        inputs = batch.inputs
        return model(inputs["tokens"], documents=inputs["documents"], labels=inputs["labels"])

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Nats a token, perplexity and bits per UTF-8 byte on validation text. Raises UserError when there is none."""
        if self.validation is None:
            raise UserError(
                "the data has no validation split, so it cannot be evaluated; split it, or do not evaluate."
            )
        device = next(model.parameters()).device
        nats, count = 0.0, 0
        for batch in self.validation.validation_batches():
            nats += float(self._run(model, batch.to(device)).losses.detach().sum())
            count += batch.weight
        out = {"loss": nats / count, "perplexity": math.exp(min(nats / count, 700.0))}
        if self.validation_bytes:
            out["bits_per_byte"] = nats / math.log(2) / self.validation_bytes
        return out

    def expect(self, model: nn.Module, predicted: int) -> tuple[float, float] | None:
        """Between which validation losses a run over `predicted` tokens should end; None when nothing is known.

        A share of the training text's unigram entropy, by rule of thumb from runs on the standard library's
        documentation (2.4M parameters, 4096 words) and tiny Shakespeare: 0.89 of it after 120k tokens, 0.49
        after 2M, then 0.04 less every tenfold; give or take a quarter. A loss above it asks for a look.
        """
        if not self.unigram:
            return None
        tenfolds = math.log10(max(predicted, 1))
        share = min(1.0, max(0.89 - 0.33 * (tenfolds - 5.08), 0.49) - 0.04 * max(0.0, tenfolds - 6.3))
        return 0.75 * share * self.unigram, min(1.0, 1.25 * share) * self.unigram

    def describe(self, batch: Batch) -> list[str]:
        """Ids of the batch's documents (numbers where only tokens are at hand)."""
        return self.train.describe(batch)

    def state_dict(self) -> dict[str, Any]:
        """The loader's place."""
        return self.train.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. Raises UserError when the data is another."""
        self.train.load_state_dict(state)


def build(config: Config, context: Context) -> Objective:
    """The objective over `context.data`: a folder of tokens (`data.tokens`), or a corpus, which is encoded in memory.

    Raises UserError when it is neither, has no `train` split, or was encoded by another tokenizer.
    """
    c = context
    train = read(c.data, "train", c.tokenizer)
    names = tokens.splits(c.data) if (c.data / tokens.INDEX).is_file() else list(corpus.ledger_of(c.data).splits)
    validation, size = None, 0
    if "validation" in names:
        data = subset(read(c.data, "validation", c.tokenizer), config.evaluate_tokens, c.seed)
        if data.n_tokens:
            rows = max(c.rows, EVALUATION_TOKENS // c.max_len)
            validation = Loader(Documents(data, c.tokenizer.eos, c.max_len), rows, c.max_len, c.seed, rank=0, world=1)
            size = data.bytes
            doubts.told_overlap(doubts.overlap(train, data), data.n_documents, "documents")
    loader = Loader(Documents(train, c.tokenizer.eos, c.max_len), c.rows, c.max_len, c.seed, workers=c.workers)
    doubts.told_small(loader)
    return CausalLM(loader, validation, size, unigram(train))


def unigram(data: TokenData, limit: int = 1_000_000) -> float:
    """Entropy of the token frequencies in nats, on whole documents up to about `limit` tokens: what counting gives."""
    total, counts = 0, np.zeros(0, np.int64)
    for i in range(data.n_documents):
        here = np.bincount(data.document(i), minlength=len(counts))
        here[: len(counts)] += counts
        total, counts = total + int(data.lengths[i]), here
        if total >= limit:
            break
    shares = counts[counts > 0] / max(total, 1)
    return float(-(shares * np.log(shares)).sum())


def read(folder: Path, split: str, tokenizer: Any) -> TokenData:
    """A split as token ids, from token shards or straight from a corpus."""
    if (folder / tokens.INDEX).is_file():
        return TokenData.open(folder, split, tokenizer)
    ids, sizes, names = [], [], []
    for document in corpus.read(folder, split):
        ids.append([*tokenizer.encode(document.text), tokenizer.eos])
        sizes.append(document.bytes)
        names.append(document.id)
    data = TokenData.of(ids, sizes)
    data.names = names
    return data


def subset(data: TokenData, limit: int, seed: int) -> TokenData:
    """Whole documents chosen by the seed, up to about `limit` tokens (0: all of them)."""
    if not limit or data.n_tokens <= limit:
        return data
    order = shuffled(data.n_documents, seed, "evaluate")
    count = max(1, int(np.searchsorted(np.cumsum(data.lengths[order]), limit, side="right")))
    chosen = sorted(order[:count].tolist())
    return TokenData.of([data.document(i).tolist() for i in chosen], [int(data.document_bytes[i]) for i in chosen])


def example() -> tuple[nn.Module, Objective]:
    """A tiny model and three short documents, for the contract suite."""
    from modelworks.models import qwen3

    texts = [[5, 6, 7, 8, 9, 10, 0], [11, 12, 13, 14, 0], [9, 8, 7, 6, 5, 4, 3, 2, 0]]
    data = TokenData.of(texts, [6, 4, 8])
    shape = {"vocab_size": 16, "d_model": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "d_head": 16, "d_ff": 64}
    model = qwen3.build(qwen3.Config(max_len=32, **shape))
    loader = Loader(Documents(data, 0, 12), 2, 12, 0)
    return model, CausalLM(loader, Loader(Documents(data, 0, 12), 2, 12, 0, rank=0, world=1), data.bytes)
