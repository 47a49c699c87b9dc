"""Held-out text: loss a token, perplexity and bits per byte, beside unigram, n-grams and xz on the same data."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import nn

from modelworks.base import log
from modelworks.base.config import Count, Settings
from modelworks.base.errors import UserError
from modelworks.data import corpus
from modelworks.data.order import shuffled
from modelworks.data.packing import IGNORED

from .. import baselines
from ..context import Result, SuiteContext
from ..intervals import Interval, ratio

VERSION = 1


class Config(Settings):
    """Which text is scored, and what stands beside it."""

    split: str = "test"
    """Split of the corpus that is scored."""
    train: str = "train"
    """Split that the baselines are counted on ('' for no baselines)."""
    limit_bytes: Count = Field(200_000, ge=0)
    """Whole held-out documents up to about so many bytes, chosen by the seed (0: all)."""
    train_bytes: Count = Field(4_000_000, ge=0)
    """Whole training documents up to about so many bytes for the baselines, chosen by the seed (0: all)."""
    order: int = Field(6, ge=1, le=12)
    """Longest byte n-gram of the baselines."""


PROTOCOL = """Every token of every document is scored once, its end mark included: the first after the end mark of
nothing, tokens beyond the model's window with at least half a window before them. bits_per_byte = all nats / ln 2 /
UTF-8 bytes of the texts. loss and perplexity are per token, so they compare only under one tokenizer. Beside it, in
bits per byte of the same texts, each with its end mark: modified Kneser-Ney n-grams (bytes; tokens of order 1 and 5)
counted on the training split, and xz -9e: alone (the held-out texts as one file) and after training text (what they
add to a file of the training texts). Intervals are 95 %, percentile bootstrap over documents; xz has none."""


def run(config: Config, context: SuiteContext) -> Result:
    """Score a split. Raises UserError when there is no model, no tokenizer, or no text."""
    if context.model is None or context.tokenizer is None:
        raise UserError("perplexity needs a model with its tokenizer.")
    documents = chosen(context, config.split, config.limit_bytes)
    sizes = np.array([document.bytes for document in documents], dtype=np.float64)
    ids = context.tokenizer.encode_batch([document.text for document in documents])
    counts = np.array([len(document) + 1 for document in ids], dtype=np.float64)
    nats = document_nats(context.model, ids, context.tokenizer.eos, context.max_len, context.rows)
    loss, own = ratio(nats, counts, context.seed), ratio(nats / math.log(2), sizes, context.seed)
    metrics: dict[str, Interval | float] = {"bits_per_byte": own, "loss": loss}
    metrics["perplexity"] = Interval(*(math.exp(min(v, 700)) for v in (loss.value, loss.low, loss.high)), n=loss.n)
    others = _baselines(config, context, [document.text for document in documents], ids) if config.train else {}
    rows = [["what", "bits per byte", "95 % interval"]]
    rows.append(["this model", f"{own.value:.3f}", f"{own.low:.3f} to {own.high:.3f}"])
    for name, cost in others.items():
        found = ratio(cost, sizes, context.seed) if isinstance(cost, np.ndarray) else cost / float(sizes.sum())
        metrics[f"{name}.bits_per_byte"] = found
        value, spread = (
            (found.value, f"{found.low:.3f} to {found.high:.3f}") if isinstance(found, Interval) else (found, "")
        )
        rows.append([name.replace("_", " "), f"{value:.3f}", spread])
    items = [
        {"id": d.id, "bytes": d.bytes, "tokens": int(c), "nats": float(n)}
        for d, c, n in zip(documents, counts, nats, strict=True)
    ]
    protocol = f"{' '.join(PROTOCOL.split())} Window: {context.max_len} tokens. Byte n-grams: order {config.order}."
    return Result("perplexity", VERSION, metrics, items, protocol, rows)


def chosen(context: SuiteContext, split: str, limit: int) -> list[corpus.Document]:
    """Documents of a split with some text, up to about `limit` bytes, chosen by the seed. Raises UserError if none."""
    documents = [document for document in corpus.read(context.data, split) if document.text]
    if not documents:
        raise UserError(f"{context.data}: the split {split} holds no text to score.")
    if not limit or sum(document.bytes for document in documents) <= limit:
        return documents
    order = shuffled(len(documents), context.seed, "perplexity", split)
    total = np.cumsum([documents[i].bytes for i in order])
    return [documents[i] for i in sorted(order[: max(1, int(np.searchsorted(total, limit, "right")))].tolist())]


@torch.no_grad()
def document_nats(model: nn.Module, ids: Sequence[Sequence[int]], eos: int, max_len: int, rows: int) -> np.ndarray:
    """Nats of each document with its end mark, float64 [documents]."""
    device = next(model.parameters()).device
    pieces = sorted(windows(ids, eos, max_len), key=lambda piece: (-len(piece[1]), piece[0]))
    nats = np.zeros(len(ids))
    training = model.training
    model.eval()
    try:
        with log.progress("scoring held-out text", len(pieces), "windows") as bar:
            for start in range(0, len(pieces), rows):
                group = pieces[start : start + rows]
                width = len(group[0][1])
                tokens = np.full((len(group), width), eos, dtype=np.int64)
                labels = np.full((len(group), width), IGNORED, dtype=np.int64)
                for row, (_, window, targets) in enumerate(group):
                    tokens[row, : len(window)], labels[row, : len(window)] = window, targets
                output = model(torch.from_numpy(tokens).to(device), labels=torch.from_numpy(labels).to(device))
                sums = output.losses.double().sum(1).cpu().numpy()
                for (document, _, _), value in zip(group, sums, strict=True):
                    nats[document] += value
                bar.advance(len(group))
    finally:
        model.train(training)
    return nats


def windows(ids: Sequence[Sequence[int]], eos: int, max_len: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """(document, tokens, labels): windows of up to `max_len` that move by half and score each token once."""
    step = max(1, max_len // 2)
    for number, document in enumerate(ids):
        stream = np.array([eos, *document, eos], dtype=np.int64)
        scored, start = 0, 0
        while scored < len(stream) - 1:
            end = min(start + max_len, len(stream) - 1)
            labels = stream[start + 1 : end + 1].copy()
            labels[: scored - start] = IGNORED
            yield number, stream[start:end], labels
            scored, start = end, start + step


def _baselines(
    config: Config, context: SuiteContext, heldout: list[str], ids: list[list[int]]
) -> dict[str, np.ndarray | float]:
    """Bits of the held-out documents under each baseline: one number a document, or one for all (xz)."""
    train = [document.text for document in chosen(context, config.train, config.train_bytes)]
    words = context.tokenizer.encode_batch(train)
    vocab_size, eos = context.tokenizer.vocab_size, context.tokenizer.eos
    return {
        f"byte_{config.order}-gram": baselines.byte_ngram(train, heldout, config.order),
        "token_5-gram": baselines.word_ngram(words, ids, vocab_size, 5, eos),
        "token_unigram": baselines.word_ngram(words, ids, vocab_size, 1, eos),
        "xz_after_training_text": baselines.xz_after(train, heldout),
        "xz": baselines.xz(heldout),
    }


def example(folder: Any) -> tuple[Config, list[tuple[SuiteContext, dict[str, float]]]]:
    """A fixture: text "abab...", a model that knows what comes next, and one that gives every word the same chance."""
    from modelworks.data.corpus import Document, write
    from modelworks.data.tokenizer import Tokenizer

    from . import _example

    texts = [("abc" * 20, "train"), ("abc" * 30, "test"), ("abc" * 10, "test")]
    write(folder, [Document(str(i), text, {"source": "example", "split": s}) for i, (text, s) in enumerate(texts)])
    tokenizer = Tokenizer.characters("abc")
    a, b, c = (tokenizer.encode(letter)[0] for letter in "abc")
    size, eos = tokenizer.vocab_size, tokenizer.eos
    knows = _example.Sure({a: b, b: c, c: a, eos: a}, size, 1 - 1e-6)
    knows_not = _example.Sure({}, size, 1.0)
    end = -math.log2(1e-6 / (size - 1))  # the end of a document surprises the one that is sure
    right = SuiteContext(folder, knows, tokenizer, max_len=16)
    wrong = SuiteContext(folder, knows_not, tokenizer, max_len=16)
    bits = math.log2(size)
    best = {"bits_per_byte": 2 * end / 120 - math.log2(1 - 1e-6)}
    worst = {"bits_per_byte": bits * 122 / 120, "loss": math.log(size), "perplexity": float(size)}
    return Config(order=3), [(right, best), (wrong, worst)]
