"""Readers of texts with a head: classes of a text, labels of its tokens, words for its gaps. N texts, T time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelworks.base.errors import UserError

from .encoder import TextEncoder, batches
from .engine import evaluating


class _Headed(TextEncoder):
    """`labels` {class: name}; `problem` says what their scores mean, by Hugging Face's names of it."""

    def __init__(
        self, *made: Any, labels: Mapping[int, str] | None = None, problem: str | None = None, **settings: Any
    ) -> None:
        super().__init__(*made, **settings)
        count = getattr(self.config, "n_labels", 0)
        known = labels if labels is not None and len(labels) == count else {}
        self.labels = [known.get(number, f"LABEL_{number}") for number in range(count)]
        self.problem = problem

    def _logits(self, rows: Sequence[Sequence[int]]) -> Iterator[Tensor]:
        """What the head says of each row, in order, float32 on the CPU: [C], or [T, C] where it speaks of tokens."""
        found: dict[int, Tensor] = {}
        for batch in batches(rows):
            longest = max(len(rows[i]) for i in batch)
            tokens = torch.tensor([[*rows[i], *[0] * (longest - len(rows[i]))] for i in batch], device=self.device)
            real = torch.tensor([[1] * len(rows[i]) + [0] * (longest - len(rows[i])) for i in batch])
            documents = None if bool(real.all()) else real.to(self.device)
            with evaluating(self.model), torch.no_grad():
                logits = self.model(tokens, documents=documents).logits.float().cpu()
            for number, i in enumerate(batch):
                found[i] = logits[number] if logits.dim() == 2 else logits[number, : len(rows[i])]
        return (found[i] for i in range(len(rows)))


class TextClassifier(_Headed):
    """A model with classes of whole texts, an encoder's or a decoder's."""

    def classify(self, texts: Sequence[str]) -> list[dict[str, Any]]:
        """The likeliest class of each text: {"label", "score", "probabilities": {label: p}}.

        Where several may hold at once (multi_label_classification) each has a probability of its own; a regression
        (or a single class) has its number for a score. Raises UserError for a text that is empty or too long.
        """
        if isinstance(texts, str):
            raise UserError("classify takes a list of texts; put the one into brackets.")
        return [verdict(logits, self.labels, self.problem) for logits in self._logits(self.rows(texts))]


def verdict(logits: Tensor, labels: Sequence[str], problem: str | None) -> dict[str, Any]:
    """Scores of classes [C] as {"label", "score", "probabilities"}; a regression's number is its score."""
    if problem == "regression":
        values = logits
    elif problem == "multi_label_classification" or len(labels) == 1:
        values = logits.sigmoid()
    else:
        values = logits.softmax(0)
    scores = values.tolist()
    best = max(range(len(labels)), key=scores.__getitem__)
    return {"label": labels[best], "score": scores[best], "probabilities": dict(zip(labels, scores, strict=True))}


class Tagger(_Headed):
    """A model with labels of tokens: names of people and places, parts of speech."""

    def tag(self, texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        """The spans of each text: {"label", "score", "text", "start", "end"}, in characters, in order.

        Neighbouring tokens of one label are one span, B- begins another, and O is left out; the score is the mean of
        the tokens'. Raises UserError for a text that is too long.
        """
        if isinstance(texts, str):
            raise UserError("tag takes a list of texts; put the one into brackets.")
        before = len(self.tokenizer.around[0])
        out = []
        for text, logits in zip(texts, self._logits(self.rows(texts)), strict=True):
            places = self.tokenizer.spans(text)
            scores, labels = logits[before : before + len(places)].softmax(-1).max(-1)
            named = [self.labels[label] for label in labels.tolist()]
            out.append(spans(text, named, scores.tolist(), places))
        return out


def spans(
    text: str, labels: Sequence[str], scores: Sequence[float], places: Sequence[tuple[int, int]]
) -> list[dict[str, Any]]:
    """Tokens with labels (B-X, I-X, X, O) joined to spans."""
    groups: list[tuple[str, list[int]]] = []
    for number, label in enumerate(labels):
        begins, name = label.startswith("B-"), label[2:] if label[:2] in ("B-", "I-") else label
        if groups and groups[-1][0] == name and not begins:
            groups[-1][1].append(number)
        else:
            groups.append((name, [number]))
    return [
        {
            "label": name,
            "score": sum(scores[i] for i in tokens) / len(tokens),
            "text": text[places[tokens[0]][0] : places[tokens[-1]][1]],
            "start": places[tokens[0]][0],
            "end": places[tokens[-1]][1],
        }
        for name, tokens in groups
        if name != "O"
    ]


class GapFiller(_Headed):
    """A masked language model."""

    def fill_mask(self, text: str, top_k: int = 5) -> Any:
        """The likeliest words for a gap, written [MASK] (or as the model writes it): {"word", "score", "text"} each.

        A text with several gaps gives such a list for each, in order; every gap is judged with the others open,
        and control tokens are passed over. `score` is a share of all words' probability.
        Raises UserError for a text without a gap or too long, or a tokenizer without such a token.
        """
        id = self.tokenizer.special("mask_token")
        if id is None:
            raise UserError("the tokenizer has no mask_token; add it to its tokenizer_config.json.")
        named = self.tokenizer.config["mask_token"]
        own = named["content"] if isinstance(named, dict) else str(named)
        around = self.tokenizer.around
        ids = [*around[0], *self.tokenizer.encode_marked(text, {"[MASK]": id, own: id}), *around[1]]
        gaps = [place for place, token in enumerate(ids) if token == id]
        if not gaps:
            raise UserError("there is no gap in the text; write [MASK] where a word is missing.")
        self.fits(0, ids)
        words = min(self.tokenizer.vocab_size, self.config.vocab_size)
        scores = next(self._logits([ids]))[gaps].softmax(-1)[:, :words]
        found = []
        for number, row in enumerate(scores):
            likeliest = (token for token in row.argsort(descending=True).tolist() if self.tokenizer.token_bytes(token))
            best: list[dict[str, Any]] = []
            for token in itertools.islice(likeliest, top_k):
                word = self.tokenizer.token_bytes(token).decode("utf-8", "replace").strip()
                whole = _filled(text, (own, "[MASK]"), number, word)
                best.append({"word": word, "score": float(row[token]), "text": whole})
            found.append(best)
        return found[0] if len(found) == 1 else found


def _filled(text: str, marks: Sequence[str], number: int, word: str) -> str:
    """The text with a word in gap `number`."""
    at = -1
    for _ in range(number + 1):
        at, mark = min((text.find(mark, at + 1), mark) for mark in marks if mark in text[at + 1 :])
    return text[:at] + word + text[at + len(mark) :]
