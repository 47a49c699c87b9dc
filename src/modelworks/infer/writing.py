"""Writing token by token where the engine's scheduler does not reach: after an encoder, after images. B rows, V words.

What reads (a memory, images) is the caller's; here is what comes out: rules of the model's makers, the choice of a
token, what ends a row, and the dropping of rows that have ended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.errors import UserError
from modelworks.base.protocols import Sample
from modelworks.data.tokenizer import Tokenizer

from .opened import Opened
from .sampling import Picker
from .scheduler import Generation
from .streaming import text_of


@dataclass(frozen=True, slots=True)
class Rules:
    """What a model's makers say of how it writes (generation_config.json, by Hugging Face's names)."""

    ends: frozenset[int]
    """eos_token_id: tokens that end a text."""
    forced_first: int | None = None
    """forced_bos_token_id: the first token, whatever the model says."""
    forced_last: int | None = None
    """forced_eos_token_id: the last token that there is room for."""
    never: tuple[int, ...] = ()
    """suppress_tokens, and bad_words_ids of one token."""
    never_first: tuple[int, ...] = ()
    """begin_suppress_tokens."""
    shortest: int = 0
    """min_new_tokens (or min_length less the start): no end before."""
    no_repeat: int = 0
    """no_repeat_ngram_size: no n tokens twice."""

    def bend(self, logits: Tensor, rows: Sequence[Generation], start: Sequence[Sequence[int]]) -> Tensor:
        """Logits [B, V] as these rules allow, for rows that have all written as much; `start` is what stood before."""
        done = len(rows[0].tokens)
        if self.no_repeat:
            logits = logits.clone()
            for number, (row, before) in enumerate(zip(rows, start, strict=True)):
                logits[number, self._repeats([*before, *row.tokens])] = -torch.inf
        banned = [*self.never, *(self.never_first if done == 0 else ())]
        banned += self.ends if done < self.shortest else ()
        banned = [token for token in banned if token < logits.shape[1]]
        if banned:
            logits = logits.index_fill(1, torch.tensor(banned, device=logits.device), -torch.inf)
        if done == 0 and self.forced_first is not None:
            logits = _only(logits, self.forced_first)
        if self.forced_last is not None:
            last = torch.tensor([row.limit == done + 1 for row in rows], device=logits.device)
            logits = torch.where(last[:, None], _only(logits, self.forced_last), logits)
        return logits

    def _repeats(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that would make n tokens that are there already."""
        n = self.no_repeat
        tail = list(tokens[len(tokens) - n + 1 :]) if n > 1 else []
        return [tokens[i + n - 1] for i in range(len(tokens) - n + 1) if list(tokens[i : i + n - 1]) == tail]


def _only(logits: Tensor, token: int) -> Tensor:
    out = torch.full_like(logits, -torch.inf)
    out[:, token] = 0.0
    return out


class Writer(Opened):
    """A model that writes after what it read. `generation` is what its generation_config.json says.

    Unless told otherwise it takes the likeliest token at each place: `temperature` is 0, not 1.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts)
        self.generation = dict(generation or {})

    @cached_property
    def rules(self) -> Rules:
        """How it begins and ends. Raises UserError for a generation_config.json that cannot be."""
        eos = None
        with suppress(UserError):
            eos = self.tokenizer.eos
        return rules(self.generation, eos, self.config.vocab_size)


def rules(generation: Mapping[str, Any], eos: int | None, words: int) -> Rules:
    """Rules from a generation_config.json; `eos` is the tokenizer's, for a file that names none.

    Raises UserError for ids that the model (of `words` words) does not have, and for what is not done (bad words of
    several tokens).
    """
    ends = ids_of(generation, "eos_token_id", words) or ((eos,) if eos is not None else ())
    bad = generation.get("bad_words_ids") or []
    if not isinstance(bad, list) or any(not isinstance(word, list) or len(word) != 1 for word in bad):
        raise UserError("generation_config.json: 'bad_words_ids' of several tokens are not done; take the line out.")
    firsts, lasts = ids_of(generation, "forced_bos_token_id", words), ids_of(generation, "forced_eos_token_id", words)
    shortest = max(_count(generation, "min_length") - 1, _count(generation, "min_new_tokens"), 0)
    return Rules(
        frozenset(ends),
        firsts[0] if firsts else None,
        lasts[0] if lasts else None,
        (*ids_of(generation, "suppress_tokens", words), *(word[0] for word in bad)),
        ids_of(generation, "begin_suppress_tokens", words),
        shortest,
        _count(generation, "no_repeat_ngram_size"),
    )


def ids_of(generation: Mapping[str, Any], name: str, words: int) -> tuple[int, ...]:
    """A setting that is an id or a list of them; () where it is absent. Raises UserError."""
    value = generation.get(name)
    found = value if isinstance(value, list) else [] if value is None else [value]
    if any(not isinstance(id, int) or not 0 <= id < words for id in found):
        raise UserError(f"generation_config.json: '{name}' is {value!r}, and ids are 0 to {words - 1}; mend the file.")
    return tuple(found)


def _count(generation: Mapping[str, Any], name: str) -> int:
    value = generation.get(name) or 0
    if not isinstance(value, int) or value < 0:
        raise UserError(f"generation_config.json: '{name}' is {value!r} and must be a whole number; mend the file.")
    return value


def write(
    rows: Sequence[Generation],
    start: Sequence[Sequence[int]],
    step: Callable[[Tensor], Tensor],
    keep: Callable[[Tensor], None],
    rules: Rules,
    token_bytes: Callable[[int], bytes],
    device: torch.device | str,
) -> Iterator[None]:
    """Write every row to its end; a step (one token a row) at each `next`.

    `start` are the tokens that stand before, equally many a row; `step(tokens [B, T])` returns the logits [B, V] of
    what comes next, at first after `start`, then after one token a row. `keep(rows [N])` is told which are left.
    """
    alive, before = list(rows), [list(tokens) for tokens in start]
    tokens = torch.tensor(before, device=device)
    picker, seen = Picker([row.settings for row in alive], device), None
    while True:
        with torch.inference_mode():
            logits = step(tokens).float()
            if picker.penalty is not None:
                seen = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True) if seen is None else seen
            draws = () if picker.all_greedy else [row.random.random() for row in alive]
            chosen = picker.pick(rules.bend(logits, alive, before), draws, seen)
            if seen is not None:
                seen.scatter_(1, chosen[:, None], True)
            for number, (row, token) in enumerate(zip(alive, chosen.tolist(), strict=True)):
                if row.settings.logprobs:
                    row.logprobs.append(float(logits[number].log_softmax(0)[token]))
                _book(row, token, rules.ends, token_bytes)
            left = [number for number, row in enumerate(alive) if row.reason is None]
            if left and len(left) < len(alive):
                index = torch.tensor(left, device=device)
                keep(index)
                alive, before = [alive[i] for i in left], [before[i] for i in left]
                chosen, seen = chosen[index], None if seen is None else seen[index]
                picker = Picker([row.settings for row in alive], device)
            tokens = chosen[:, None]
        yield
        if not left:
            return


def _book(row: Generation, token: int, ends: frozenset[int], token_bytes: Callable[[int], bytes]) -> None:
    row.tokens.append(token)
    if token in ends:
        row.reason, row.fresh = "stop", row.stream.close()
        return
    row.fresh = row.stream.push(token_bytes(token))
    if row.stream.stopped:
        row.reason = "stop"
    elif len(row.tokens) >= row.limit:
        row.reason = "length"
        row.fresh += row.stream.close()


def finished(row: Generation, ends: frozenset[int], token_bytes: Callable[[int], bytes]) -> Sample:
    """What a row came to: its tokens (an ending one among them) and its text, without the space before it."""
    words = row.tokens[:-1] if row.tokens and row.tokens[-1] in ends else row.tokens
    text = text_of([token_bytes(word) for word in words], row.settings.stop)
    return Sample(
        row.tokens, text.removeprefix(" "), row.reason or "cancelled", row.logprobs if row.settings.logprobs else None
    )


def pieces(row: Generation, steps: Iterator[None]) -> Iterator[str]:
    """The text of the one row that `steps` write, as it becomes sure."""
    first = True
    for _ in steps:
        piece = row.fresh.removeprefix(" ") if first else row.fresh
        if row.fresh:
            first = False
        if piece:
            yield piece
