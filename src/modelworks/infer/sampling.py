"""How the next token is chosen: settings of a request, and `pick` for a batch of requests. Shapes: B rows, V words.

The order is that of transformers: repetition penalty, temperature, top-k, top-p, min-p. Each request draws from
its own generator, one number a token, so what it gets does not depend on who shares its batch.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from pydantic import Field, field_validator
from torch import Tensor

from modelworks.base import seeds
from modelworks.base.config import Settings


class Sampling(Settings):
    """How one request is to be continued."""

    max_new_tokens: int = Field(128, ge=1, le=1_000_000)
    """The most tokens to generate; the end of the model's context ends it too."""
    temperature: float = Field(1.0, ge=0, le=100, allow_inf_nan=False)
    """Divides the logits; 0 always takes the likeliest token (greedy)."""
    top_k: int = Field(0, ge=0, le=10_000_000)
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = Field(1.0, ge=0, le=1, allow_inf_nan=False)
    """Keep the fewest tokens whose probabilities sum to at least this (nucleus sampling, arXiv 1904.09751)."""
    min_p: float = Field(0.0, ge=0, le=1, allow_inf_nan=False)
    """Keep tokens at least this share as likely as the likeliest (arXiv 2407.01082)."""
    repetition_penalty: float = Field(1.0, gt=0, le=100, allow_inf_nan=False)
    """Makes tokens that were seen (prompt included) less likely above 1 (CTRL, arXiv 1909.05858)."""
    stop: list[str] = Field(default_factory=list, max_length=16)
    """Texts that end the generation; they are not part of what is returned."""
    seed: int = Field(0, ge=-(2**63), lt=2**64)
    """The same request with the same seed gives the same tokens."""
    logprobs: bool = False
    """Keep the natural log-probability of each token under the model itself (before all of the above)."""
    top_logprobs: int = Field(0, ge=0, le=20)
    """Keep that many of the likeliest alternatives at each place too."""

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    @field_validator("stop")
    @classmethod
    def _not_empty(cls, value: list[str]) -> list[str]:
        if any(not text or len(text) > 1000 for text in value):
            raise ValueError("a stop text has 1 to 1000 characters")
        return value

    @property
    def greedy(self) -> bool:
        """True where chance plays no part."""
        return self.temperature == 0 or self.top_k == 1


def generators(prompts: Sequence[Sequence[int]], seed: int) -> list[random.Random]:
    """A generator a prompt, fixed by seed, prompt and how often the same prompt came before it in the list.

    So copies of a prompt differ from each other, and a prompt draws the same numbers whatever stands beside it.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    out = []
    for prompt in prompts:
        key = tuple(prompt)
        out.append(seeds.generator(seed, "sampling", seen[key], *key))
        seen[key] += 1
    return out


class Picker:
    """The settings of B requests as tensors, made once for a batch and used at every step."""

    def __init__(self, settings: Sequence[Sampling], device: torch.device | str = "cpu") -> None:
        def column(values: list[float], dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)

        self.rows = len(settings)
        self.all_greedy = all(s.greedy for s in settings)
        self.greedy = None
        if any(s.greedy for s in settings):
            self.greedy = torch.tensor([s.greedy for s in settings], device=device)
        self.penalty = None
        if any(s.repetition_penalty != 1 for s in settings):
            self.penalty = column([s.repetition_penalty for s in settings])
        self.temperature = column([1.0 if s.temperature == 0 else max(s.temperature, 1e-4) for s in settings])
        ks = [s.top_k for s in settings if not s.greedy]
        self.widest = max(ks) if ks and min(ks) > 0 else 0  # 0: some row wants the whole vocabulary
        self.top_k = column([float(s.top_k or 2**31) for s in settings]) if any(s.top_k for s in settings) else None
        nucleus = any(s.top_p < 1 for s in settings)
        # A request without top-p keeps all, also where a float32 sum of its probabilities passes 1 by a hair.
        self.top_p = column([s.top_p if s.top_p < 1 else 2.0 for s in settings]) if nucleus else None
        self.min_p = column([s.min_p for s in settings]) if any(s.min_p > 0 for s in settings) else None

    def pick(self, logits: Tensor, draws: Sequence[float], seen: Tensor | None = None) -> Tensor:
        """Choose a token a row: float32 logits [B, V] -> int64 [B].

        `draws` are B numbers in [0, 1) (unused by greedy rows); `seen` bool [B, V] marks the tokens that a
        repetition penalty applies to.
        """
        if self.penalty is not None and seen is not None:
            logits = penalise(logits, seen, self.penalty)
        if self.all_greedy:
            return logits.argmax(dim=-1)
        sums = self.distribution(logits).cumsum(dim=-1, dtype=torch.float64)
        # A hair below 1, so that rounding can never put a draw past the last word that is kept.
        below = [min(draw, 1 - 1e-12) for draw in draws]
        draw = torch.tensor(below, dtype=torch.float64, device=logits.device).unsqueeze(1)
        chosen = torch.searchsorted(sums, draw * sums[:, -1:], right=True).squeeze(1)
        return chosen if self.greedy is None else torch.where(self.greedy, logits.argmax(dim=-1), chosen)

    def distribution(self, logits: Tensor) -> Tensor:
        """Probabilities [B, V] after temperature and filters; those kept are not normalised again.

        Always in the order of the vocabulary, so that a draw means the same word whatever the other rows ask for.
        """
        scaled = logits / self.temperature
        if self.top_k is None and self.top_p is None and self.min_p is None:
            return scaled.softmax(dim=-1)
        if 0 < self.widest < logits.shape[-1]:
            scaled, order = scaled.topk(self.widest, dim=-1)
        else:
            scaled, order = scaled.sort(dim=-1, descending=True, stable=True)
        if self.top_k is not None:
            rank = torch.arange(scaled.shape[-1], device=scaled.device)
            scaled = scaled.masked_fill(rank >= self.top_k, -torch.inf)
        probabilities = scaled.softmax(dim=-1)
        keep = torch.ones_like(probabilities, dtype=torch.bool)
        if self.top_p is not None:
            before = probabilities.cumsum(dim=-1) - probabilities
            keep &= before < self.top_p
        if self.min_p is not None:
            keep &= probabilities >= self.min_p * probabilities[:, :1]
        keep[:, 0] = True
        return torch.zeros_like(logits).scatter_(1, order, probabilities * keep)


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """CTRL's repetition penalty: logits [B, V] of `seen` words divided where positive, multiplied where negative."""
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def pick(logits: Tensor, settings: Sequence[Sampling], draws: Sequence[float], seen: Tensor | None = None) -> Tensor:
    """One step without keeping a `Picker`: float32 logits [B, V] -> int64 [B]."""
    return Picker(settings, logits.device).pick(logits, draws, seen)
