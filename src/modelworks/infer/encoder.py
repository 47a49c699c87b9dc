"""A text encoder to use: texts in, vectors out. Shapes: N texts, B batch, T time, D width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.errors import UserError
from modelworks.data.tokenizer import Tokenizer

from .engine import evaluating
from .opened import Opened

BATCH = 1 << 14
"""Tokens in a batch, padding counted."""


def embed(model: nn.Module, rows: Sequence[Sequence[int]], pooling: str = "mean", normalise: bool = True) -> Tensor:
    """One vector for each row of ids: the mean of its last hidden states, or the first or last of them.

    Rows of like lengths go together, so that little is padded, and padding is seen by nobody. -> float32 [N, D]
    on the CPU, of length 1 if `normalise`.
    """
    device = next(model.parameters()).device
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    found: list[Tensor] = []
    with evaluating(model), torch.no_grad():
        while len(found) < len(order):
            here = order[len(found) :]
            count = next((n for n in range(1, len(here) + 1) if n * len(rows[here[n - 1]]) > BATCH), len(here) + 1)
            found.extend(_pooled(model, [rows[i] for i in here[: max(1, count - 1)]], pooling, device))
    if not found:
        return torch.zeros(0, 0)
    out = torch.empty(len(rows), found[0].shape[0])
    out[torch.tensor(order)] = torch.stack(found)
    return nn.functional.normalize(out, dim=1) if normalise else out


def _pooled(model: nn.Module, rows: list[Sequence[int]], pooling: str, device: torch.device) -> Tensor:
    """Vectors of rows of ascending length, float32 [B, D] on the CPU."""
    lengths = torch.tensor([len(row) for row in rows], device=device)
    longest = len(rows[-1])
    tokens = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    real = torch.arange(longest, device=device) < lengths[:, None]
    documents = None if bool(real.all()) else real.long()
    hidden = model(tokens, documents=documents, last_only=True).hidden.float()
    if pooling == "first":
        return hidden[:, 0].cpu()
    if pooling == "last":
        return hidden[torch.arange(len(rows), device=device), lengths - 1].cpu()
    return ((hidden * real[..., None]).sum(1) / lengths[:, None]).cpu()


class TextEncoder(Opened):
    """A built encoder with its tokenizer, as `mw.load` returns it. `facts` is what modelworks.json says.

    `pooling` (mean, first, last), `normalise`, `prompt` (stands before every text) and `lower` (case first) say
    how a text becomes a vector; `max_len` is the longest text in tokens, its marks counted.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        pooling: str = "mean",
        normalise: bool = True,
        max_len: int | None = None,
        prompt: str = "",
        lower: bool = False,
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts)
        self.pooling, self.normalise, self.prompt, self.lower = pooling, normalise, prompt, lower
        self.max_len = min(max_len or config.max_len, config.max_len)

    def encode(self, text: str) -> list[int]:
        """Ids of a text with the marks that belong around it ([CLS] and [SEP])."""
        text = self.prompt + text
        return self.tokenizer.encode(text.lower() if self.lower else text, special=True)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector a text: float32 [N, D]. Raises UserError for a text of more than `max_len` tokens, or of none."""
        return embed(self.model, self.rows(texts), self.pooling, self.normalise)

    def rows(self, texts: Sequence[str]) -> list[list[int]]:
        """`encode` each. Raises UserError for a text of more than `max_len` tokens, or of none."""
        found = [self.encode(text) for text in texts]
        for number, ids in enumerate(found):
            self.fits(number, ids)
        return found

    def fits(self, number: int, ids: Sequence[int]) -> None:
        """Raises UserError where text `number` has more tokens than `max_len`, or none."""
        if not 0 < len(ids) <= self.max_len:
            raise UserError(
                f"text {number} has {len(ids)} tokens and this encoder takes 1 to {self.max_len}; split it into "
                "passages."
            )


def batches(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Numbers of rows of like lengths, so many at once as make `BATCH` tokens with their padding."""
    batch: list[int] = []
    for number in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if batch and (len(batch) + 1) * len(rows[number]) > BATCH:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch
