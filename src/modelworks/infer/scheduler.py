"""Continuous batching: requests join and leave one running batch between tokens. B rows, T time, V words.

    add -> waiting -> (prefill, joins the cache) -> one token a step -> finished or cancelled (row dropped)

Every path of generation goes through here, so a request is treated alike alone and in a crowd.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from modelworks.adapters._attached import using
from modelworks.nn.cache import KVCache
from modelworks.nn.transformer import Transformer

from .sampling import Picker, Sampling
from .streaming import TextStream

ROOM = 128  # the cache grows in steps of so many tokens
PREFILL = 8192  # tokens, padding included, that join in one step at most


@dataclass(slots=True, eq=False)
class Generation:
    """One continuation on its way. `tokens` holds all that was generated, an ending token included."""

    prompt: list[int]
    settings: Sampling
    random: random.Random
    limit: int
    """How many tokens may be generated: `max_new_tokens`, or what is left of the context."""
    stream: TextStream
    adapter: str | None = None
    """The adapter it runs with; '' is the base alone, None whatever the model uses."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    alternatives: list[list[tuple[int, float]]] = field(default_factory=list)
    """The likeliest (token, log-probability) at each place, when asked for."""
    reason: str | None = None
    """None while it runs, then 'stop', 'length' or 'cancelled'."""
    fresh: str = ""
    """The text that the last step made sure."""


class Scheduler:
    """Advances many generations by one token a step, at most `max_rows` of them at a time."""

    def __init__(
        self,
        model: Transformer,
        token_bytes: Callable[[int], bytes],
        stop_tokens: frozenset[int],
        vocab_size: int,
        max_len: int,
        max_rows: int = 32,
    ) -> None:
        self.model, self.token_bytes, self.stop_tokens = model, token_bytes, stop_tokens
        self.vocab_size, self.max_len, self.max_rows = vocab_size, max_len, max_rows
        self.device = next(model.parameters()).device
        self.waiting: deque[Generation] = deque()
        self.rows: list[Generation] = []  # as in the cache; finished ones stay until the next clearing
        self._cache: KVCache | None = None
        self._last: Tensor = torch.empty(0, dtype=torch.int64, device=self.device)
        self._picker: Picker | None = None
        self._seen: Tensor | None = None

    def add(self, generation: Generation) -> None:
        """Queue it; it joins the batch at the next step with room."""
        self.waiting.append(generation)

    def cancel(self, generation: Generation) -> None:
        """Stop it before its next token."""
        if generation.reason is None:
            generation.reason = "cancelled"
            if generation in self.waiting:
                self.waiting.remove(generation)

    @property
    def running(self) -> int:
        """How many rows are being advanced."""
        return sum(row.reason is None for row in self.rows)

    @property
    def busy(self) -> bool:
        """True while there is anything left to do."""
        return bool(self.waiting) or any(row.reason is None for row in self.rows)

    def step(self) -> list[Generation]:
        """One more token for every running row, and the first of those that join. Returns those that advanced.

        The model must be in evaluation mode and no gradient is kept.
        """
        with torch.inference_mode():
            self._clear()
            moved = self._decode() if self.rows else []
            if self.waiting and self.running < self.max_rows:
                moved += self._join()
            return moved

    def _clear(self) -> None:
        """Drop finished rows from the cache once they are a quarter of it (each dropping copies the cache)."""
        alive = [i for i, row in enumerate(self.rows) if row.reason is None]
        if len(alive) == len(self.rows):
            return
        if not alive:
            self.rows, self._cache, self._picker, self._seen = [], None, None, None
            return
        assert self._cache is not None
        if 4 * (len(self.rows) - len(alive)) < len(self.rows) and self._cache.longest < self._cache.max_len:
            return
        index = torch.tensor(alive, device=self.device)
        self._cache.rows(index)
        self.rows = [self.rows[i] for i in alive]
        self._last = self._last[index]
        self._seen = None if self._seen is None else self._seen[index]
        self._picker = Picker([row.settings for row in self.rows], self.device)

    def _decode(self) -> list[Generation]:
        cache = self._cache
        assert cache is not None and self._picker is not None
        if cache.longest == cache.max_len:
            _grow(cache, min(cache.max_len + ROOM, self.max_len))
        with self._adapters(self.rows):
            output = self.model(self._last.unsqueeze(1), cache=cache)
        assert output.logits is not None
        self._last, moved = self._advance(output.logits[:, 0], self.rows, self._picker, self._seen)
        return moved

    def _join(self) -> list[Generation]:
        """Run the prompts of those who wait, padded on the right, and put them into the batch."""
        new: list[Generation] = []
        longest = 0
        free = self.max_rows - self.running
        while self.waiting and len(new) < free:
            longest = max(longest, len(self.waiting[0].prompt))
            if new and longest * (len(new) + 1) > PREFILL:
                break
            new.append(self.waiting.popleft())
        longest = max(len(g.prompt) for g in new)
        lengths = torch.tensor([len(g.prompt) for g in new], device=self.device)
        tokens = torch.tensor([g.prompt + [0] * (longest - len(g.prompt)) for g in new], device=self.device)
        room = self._cache.max_len if self._cache else 0
        room = max(room, min(-(-(longest + 1) // ROOM) * ROOM, self.max_len))
        cache = self.model.new_cache(len(new), room)
        cache.reach = [len(g.prompt) + g.limit for g in new]
        with self._adapters(new):
            output = self.model(tokens, cache=cache, last_only=True)
        logits = output.logits
        if any(len(g.prompt) != longest for g in new):
            cache.truncate(lengths)
            ends = output.hidden[torch.arange(len(new), device=self.device), lengths - 1]
            logits = self.model.head(ends.unsqueeze(1))
        assert logits is not None
        seen = self._mark(new)
        last, moved = self._advance(logits[:, 0], new, Picker([g.settings for g in new], self.device), seen)
        self._merge(new, cache, last, seen)
        return moved

    def _adapters(self, rows: Sequence[Generation]) -> AbstractContextManager[None]:
        """Each row with the adapter that it names."""
        named = [row.adapter for row in rows]
        return (
            nullcontext()
            if all(name is None for name in named)
            else using(self.model, [name or None for name in named])
        )

    def _merge(self, new: list[Generation], cache: KVCache, last: Tensor, seen: Tensor | None) -> None:
        if self._cache is not None:
            if seen is not None or self._seen is not None:
                blank = (self.vocab_size,)
                old = self._seen if self._seen is not None else self._last.new_zeros((len(self.rows), *blank)).bool()
                seen = torch.cat((old, seen if seen is not None else last.new_zeros((len(new), *blank)).bool()))
            _grow(self._cache, cache.max_len)
            lengths = torch.cat((self._cache.lengths, cache.lengths))
            self._cache.keys = [torch.cat(pair) for pair in zip(self._cache.keys, cache.keys, strict=True)]
            self._cache.values = [torch.cat(pair) for pair in zip(self._cache.values, cache.values, strict=True)]
            self._cache.reach = (self._cache.reach or []) + (cache.reach or [])
            self._cache.truncate(lengths)
            last = torch.cat((self._last, last))
            cache = self._cache
        self._cache, self._last, self._seen = cache, last, seen
        self.rows = self.rows + new
        self._picker = Picker([row.settings for row in self.rows], self.device)

    def _mark(self, rows: list[Generation]) -> Tensor | None:
        """bool [B, V]: the words of each prompt, where somebody has a repetition penalty."""
        if all(row.settings.repetition_penalty == 1 for row in rows):
            return None
        seen = torch.zeros((len(rows), self.vocab_size), dtype=torch.bool, device=self.device)
        for number, row in enumerate(rows):
            seen[number, row.prompt] = True
        return seen

    def _advance(
        self, logits: Tensor, rows: Sequence[Generation], picker: Picker, seen: Tensor | None
    ) -> tuple[Tensor, list[Generation]]:
        """Choose a token a row from logits [B, V] and book it. Returns the tokens [B] and the rows that moved."""
        logits = logits[:, : self.vocab_size].float()  # a table padded beyond the tokenizer's words is never drawn from
        draws = () if picker.all_greedy else [row.random.random() for row in rows]
        chosen = picker.pick(logits, draws, seen)
        if seen is not None:
            seen.scatter_(1, chosen.unsqueeze(1), True)
        tokens = chosen.tolist()
        if any(row.settings.logprobs for row in rows):
            self._note(logits.log_softmax(dim=-1), rows, tokens)
        moved = []
        for row, token in zip(rows, tokens, strict=True):
            if row.reason is None:
                self._book(row, token)
                moved.append(row)
        return chosen, moved

    def _note(self, logprobs: Tensor, rows: Sequence[Generation], tokens: list[int]) -> None:
        for number, (row, token) in enumerate(zip(rows, tokens, strict=True)):
            if row.settings.logprobs and row.reason is None:
                row.logprobs.append(float(logprobs[number, token]))
                if row.settings.top_logprobs:
                    values, words = logprobs[number].topk(min(row.settings.top_logprobs, self.vocab_size))
                    row.alternatives.append(list(zip(words.tolist(), values.tolist(), strict=True)))

    def _book(self, row: Generation, token: int) -> None:
        row.tokens.append(token)
        if token in self.stop_tokens:
            row.reason, row.fresh = "stop", row.stream.close()
            return
        row.fresh = row.stream.push(self.token_bytes(token))
        if row.stream.stopped:
            row.reason = "stop"
        elif len(row.tokens) >= row.limit:
            row.reason = "length"
            row.fresh += row.stream.close()


def _grow(cache: KVCache, room: int) -> None:
    """Give every row of the cache room for `room` tokens."""
    if room <= cache.max_len:
        return
    for shelf in (cache.keys, cache.values):
        for layer, old in enumerate(shelf):
            fresh = old.new_zeros((*old.shape[:2], room, old.shape[3]))
            fresh[:, :, : cache.longest] = old[:, :, : cache.longest]
            shelf[layer] = fresh
    cache.max_len = room
