"""The engine: continuations of token ids, batched, streamed or scored. Shapes: B rows, T time, V words."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Protocol

import torch

from modelworks.adapters._attached import places, using
from modelworks.base.config import build
from modelworks.base.errors import UserError
from modelworks.base.protocols import Sample
from modelworks.nn.transformer import Transformer

from .sampling import Sampling, generators
from .scheduler import Generation, Scheduler
from .streaming import TextStream, text_of

SCORED = 1 << 22  # logits that one pass of `scores` may make (16 MB in float32)


class TokenBytes(Protocol):
    """What the engine asks of a tokenizer: how many words, what a word says, and which end a text."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def eos(self) -> int: ...

    def token_bytes(self, id: int) -> bytes: ...


class Engine:
    """Generates with a KV cache. A `base.protocols.Sampler`.

    `max_len` is the model's context: prompt and continuation together. A prompt that leaves no room is refused,
    never cut. The ending token (end of text, or any mark of a chat turn) counts among a sample's `tokens` and
    is no part of its `text`.
    """

    vocab_size: int
    """Words that are drawn from: a model's table may be padded beyond those of its tokenizer."""

    def __init__(self, model: Transformer, tokenizer: TokenBytes, max_len: int, max_rows: int = 32) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.max_len, self.max_rows = max_len, max_rows
        self.stop_tokens = _marks(tokenizer)
        self.vocab_size = min(tokenizer.vocab_size, model.head.projection.out_features)
        self._bytes: dict[int, bytes] = {}

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int = 128,
        *,
        stopped: Callable[[], bool] | None = None,
        adapter: str | None = None,
        **settings: Any,
    ) -> list[Sample]:
        """One `Sample` a prompt (token ids), in order; `settings` are those of `Sampling`.

        Copies of a prompt are continued differently (each draws its own numbers, fixed by `seed`). Rows that
        finish make room for those that wait. `adapter` is the one to run with ('': the base alone, None: whatever the
        model uses). `stopped` is asked between tokens; when it says yes, what is
        there so far is returned. Raises UserError for a prompt that is empty, too long or has unknown ids.
        """
        chosen = build(Sampling, {"max_new_tokens": max_new_tokens, **settings}, "the sampling settings")
        work = [
            self.generation(prompt, chosen, rng, adapter)
            for prompt, rng in zip(prompts, generators(prompts, chosen.seed), strict=True)
        ]
        with evaluating(self.model):
            scheduler = self.scheduler()
            for generation in sorted(work, key=lambda g: len(g.prompt)):  # like lengths join together: less padding
                scheduler.add(generation)
            while scheduler.busy and not (stopped and stopped()):
                scheduler.step()
        return [self.finished(generation) for generation in work]

    def stream(self, prompt: Sequence[int], settings: Sampling, adapter: str | None = None) -> Iterator[str]:
        """Pieces of text as they become sure; together they are exactly the text of `sample`.

        Raises UserError as `sample` does, before the first piece is asked for.
        """
        generation = self.generation(prompt, settings, generators([prompt], settings.seed)[0], adapter)
        return self._pieces(generation)

    def _pieces(self, generation: Generation) -> Iterator[str]:
        scheduler = self.scheduler()
        scheduler.add(generation)
        while generation.reason is None:
            with evaluating(self.model):
                scheduler.step()
            if generation.fresh:
                yield generation.fresh

    def scheduler(self, max_rows: int | None = None) -> Scheduler:
        """A running batch of its own over this model."""
        return Scheduler(
            self.model, self.token_bytes, self.stop_tokens, self.vocab_size, self.max_len, max_rows or self.max_rows
        )

    def generation(
        self,
        prompt: Sequence[int],
        settings: Sampling,
        rng: random.Random | None = None,
        adapter: str | None = None,
    ) -> Generation:
        """A request for the scheduler. Raises UserError for a prompt that is empty, too long or has unknown ids."""
        self.check(prompt)
        room = self.max_len - places(self.model, adapter or None)
        if len(prompt) >= room:
            raise UserError(
                f"the prompt has {len(prompt)} tokens and the model's context is {room}, "
                "prompt and answer together; shorten the prompt."
            )
        return Generation(
            prompt=list(prompt),
            settings=settings,
            random=rng or generators([prompt], settings.seed)[0],
            limit=min(settings.max_new_tokens, room - len(prompt)),
            stream=TextStream(settings.stop),
            adapter=adapter,
        )

    def finished(self, generation: Generation) -> Sample:
        """What a generation came to (an unfinished one: so far)."""
        words = generation.tokens[:-1] if generation.tokens[-1:] and self._ended(generation) else generation.tokens
        text = text_of([self.token_bytes(word) for word in words], generation.settings.stop)
        logprobs = generation.logprobs if generation.settings.logprobs else None
        return Sample(generation.tokens, text, generation.reason or "cancelled", logprobs)

    def _ended(self, generation: Generation) -> bool:
        return generation.reason == "stop" and generation.tokens[-1] in self.stop_tokens

    def score(self, prompt: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """Log-probability in nats of `continuation` after `prompt`, and whether greedy decoding would give it."""
        return self.scores([(prompt, continuation)])[0]

    def scores(
        self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], adapter: str | None = None
    ) -> list[tuple[float, bool]]:
        """`score` of many (prompt, continuation) pairs, batched by length.

        Raises UserError where a prompt is empty, the two together outgrow the context, or an id is unknown.
        """
        for prompt, continuation in pairs:
            self.check(prompt)
            self.check([*prompt, *continuation])
            if len(prompt) + len(continuation) - 1 > self.max_len:
                raise UserError(
                    f"prompt and continuation have {len(prompt) + len(continuation)} tokens and the model's "
                    f"context is {self.max_len}; shorten them."
                )
        out: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
        real = [i for i, pair in enumerate(pairs) if pair[1]]
        order = sorted(real, key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
        start = 0
        while start < len(order):
            end, wanted, longest = start, 0, 0
            while end < len(order):
                prompt, continuation = pairs[order[end]]
                wanted += len(continuation) * self.vocab_size
                longest = max(longest, len(prompt) + len(continuation))
                if end > start and (wanted > SCORED or longest * (end - start + 1) > 16384):
                    break
                end += 1
            with nullcontext() if adapter is None else using(self.model, adapter or None):
                found = list(self._scores([pairs[i] for i in order[start:end]]))
            for index, result in zip(order[start:end], found, strict=True):
                out[index] = result
            start = end
        return out

    def _scores(self, pairs: list[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[float, bool]]:
        device = next(self.model.parameters()).device
        texts = [[*prompt, *continuation][:-1] for prompt, continuation in pairs]
        longest = max(len(text) for text in texts)
        tokens = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=device)
        with evaluating(self.model), torch.inference_mode():
            hidden = self.model(tokens, last_only=True).hidden
            parts = [
                hidden[row, len(text) - len(continuation) : len(text)]
                for row, (text, (_, continuation)) in enumerate(zip(texts, pairs, strict=True))
            ]
            logits = self.model.head(torch.cat(parts).unsqueeze(0))[0]
            labels = torch.tensor([token for _, continuation in pairs for token in continuation], device=device)
            logprobs = logits.log_softmax(dim=-1).gather(1, labels.unsqueeze(1)).squeeze(1).double().tolist()
            right = (logits.argmax(dim=-1) == labels).tolist()
        place = 0
        for _, continuation in pairs:
            here = slice(place, place + len(continuation))
            place += len(continuation)
            yield sum(logprobs[here]), all(right[here])

    def check(self, tokens: Sequence[int]) -> None:
        """Raises UserError where there is nothing, or an id that the model does not know."""
        if not tokens:
            raise UserError("the prompt is empty; give at least one token.")
        if min(tokens) < 0 or max(tokens) >= self.vocab_size:
            raise UserError(f"a token id is outside 0 to {self.vocab_size - 1}; encode with the model's own tokenizer.")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of a token, remembered."""
        known = self._bytes.get(token)
        if known is None:
            known = self._bytes[token] = self.tokenizer.token_bytes(token)
        return known


def _marks(tokenizer: TokenBytes) -> frozenset[int]:
    """The control tokens that end a text; a tokenizer need not have those of a chat."""
    found = set()
    for name in ("eos", "im_start", "im_end"):
        with suppress(UserError, AttributeError):
            found.add(int(getattr(tokenizer, name)))
    return frozenset(found)


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Dropout off inside; a model that was training (it is sampled by what trains it) goes on training after."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
