"""Tiny models and objectives for the tests of training, and the script that the kill tests run."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.protocols import Batch


class Net(nn.Module):
    """Embedding, two hidden matrices of one shape and one tall one, norm, dropout, head."""

    def __init__(self, width: int = 16, dropout: float = 0.0, words: int = 11) -> None:
        super().__init__()
        self.stem = nn.Embedding(words, width)
        self.one = nn.Linear(width, width)
        self.two = nn.Linear(width, width)
        self.up = nn.Linear(width, 2 * width, bias=False)
        self.norm = nn.LayerNorm(2 * width)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(2 * width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.stem(tokens)
        x = x + self.drop(torch.tanh(self.one(x)))
        x = x + self.drop(torch.tanh(self.two(x)))
        return self.head(self.norm(self.up(x)))


class Next:
    """Next number of a sequence mod `words`, rows shuffled anew each epoch, with an uneven mask.

    `per_rank` rows a batch; every rank takes its slice of one global order.
    """

    splittable = True

    def __init__(
        self, rows: int = 8, seed: int = 0, words: int = 11, rank: int = 0, ranks: int = 1, n: int = 64
    ) -> None:
        make = random.Random(seed)
        self.data = [[(make.randrange(words) + k * (1 + r % 3)) % words for k in range(9)] for r in range(n)]
        for r, row in enumerate(self.data):
            row[:] = [(row[0] + k * (1 + r % 3)) % words for k in range(9)]
        self.rows, self.seed, self.rank, self.ranks = rows, seed, rank, ranks
        self.at = 0  # batches given so far, of all ranks together / ranks

    def _row(self, index: int) -> tuple[list[int], int]:
        epoch, place = divmod(index, len(self.data))
        order = list(range(len(self.data)))
        random.Random(self.seed * 1000 + epoch).shuffle(order)
        return self.data[order[place]], order[place]

    def batches(self, model: nn.Module) -> Iterator[Batch]:
        while True:
            first = (self.at * self.ranks + self.rank) * self.rows
            self.at += 1
            yield self.batch(range(first, first + self.rows))

    def batch(self, indices: Any) -> Batch:
        picked = [self._row(i) for i in indices]
        tokens = torch.tensor([row[:-1] for row, _ in picked])
        labels = torch.tensor([row[1:] for row, _ in picked])
        keep = torch.tensor([[k <= number % 8 for k in range(8)] for _, number in picked])
        labels[~keep] = -100
        return Batch({"tokens": tokens, "labels": labels}, int(keep.sum()))

    def loss(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        logits = model(batch.inputs["tokens"])
        labels = batch.inputs["labels"]
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum")
        right = ((logits.argmax(-1) == labels) & (labels != -100)).sum().float()
        return {"loss": loss, "right": right}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        batch = self.batch(range(len(self.data)))
        return {name: float(value) / batch.weight for name, value in self.loss(model, batch).items()}

    def state_dict(self) -> dict[str, Any]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.at = state["at"]


def build(dropout: float = 0.0, seed: int = 3) -> Net:
    """A net whose weights are those of the seed."""
    torch.manual_seed(seed)
    return Net(dropout=dropout)


def silent(text: str) -> None:
    """A log that says nothing."""
