"""A model that reads a text and writes another: translation, summary, Flan's tasks. B rows, S source, T target."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import torch
from torch import Tensor

from modelworks.base.config import build
from modelworks.base.errors import UserError
from modelworks.base.protocols import Sample
from modelworks.nn.encoder_decoder import EncoderDecoder
from modelworks.nn.memory import Memory

from .encoder import batches, embed
from .sampling import Sampling, generators
from .scheduler import Generation
from .streaming import TextStream
from .writing import Rules, Writer, finished, ids_of, pieces, write


class TextToText(Writer):
    """An encoder-decoder with its tokenizer."""

    model: EncoderDecoder

    @property
    def max_len(self) -> int:
        """The longest source, and the longest target, in tokens."""
        return int(self.config.max_len)

    @property
    def start(self) -> int:
        """The token before everything it writes. Raises UserError where no file says which."""
        found = ids_of(self.generation, "decoder_start_token_id", self.config.vocab_size)
        found = found or ids_of(self.generation, "bos_token_id", self.config.vocab_size)
        if not found:
            raise UserError("config.json names no decoder_start_token_id; add the token that a target starts with.")
        return found[0]

    def encode(self, text: str) -> list[int]:
        """Ids of a source or a target, with the marks that belong around it."""
        return self.tokenizer.encode(text, special=True)

    @overload
    def generate(self, source: str, **sampling: Any) -> str: ...

    @overload
    def generate(self, source: Sequence[str], **sampling: Any) -> list[str]: ...

    def generate(self, source: str | Sequence[str], **sampling: Any) -> str | list[str]:
        """What the model makes of a source, or of each of many; `sampling` are the settings of `Sampling`.

        Raises UserError for a source that is empty or too long, or a setting that is unknown or out of range.
        """
        if isinstance(source, str):
            return self.sample([source], **sampling)[0].text
        return [sample.text for sample in self.sample(source, **sampling)]

    def stream(self, source: str, **sampling: Any) -> Iterator[str]:
        """`generate` of one source, piece by piece."""
        ids = self._sources([source])
        rows = self._rows(ids, self._settings(sampling, "stream"))
        return pieces(rows[0], self._steps(rows, ids))

    def sample(self, sources: Sequence[str], **sampling: Any) -> list[Sample]:
        """One `Sample` a source, in order: the tokens after the start, an ending one among them, and the text."""
        ids = self._sources(sources)
        rows = self._rows(ids, self._settings(sampling, "generate"))
        for batch in batches(ids):
            for _ in self._steps([rows[i] for i in batch], [ids[i] for i in batch]):
                pass
        return [finished(row, self.rules.ends, self.tokenizer.token_bytes) for row in rows]

    def score(self, source: str, targets: Sequence[str]) -> list[float]:
        """Log-probability in nats of each target as the whole text that follows from `source`, its end counted.

        Raises UserError where source or target are empty or too long.
        """
        memory = self._read(self._sources([source]))
        wanted = [self.encode(target) for target in targets]
        for number, ids in enumerate(wanted):
            self._fits(f"target {number}", ids)
        out = [0.0] * len(wanted)
        for batch in batches(wanted):
            longest = max(len(wanted[i]) for i in batch)
            labels = torch.tensor([wanted[i] + [-100] * (longest - len(wanted[i])) for i in batch], device=self.device)
            tokens = torch.cat((torch.full_like(labels[:, :1], self.start), labels[:, :-1].clamp_min(0)), 1)
            with torch.inference_mode():
                here = memory.rows(torch.zeros(len(batch), dtype=torch.int64, device=self.device))
                losses = self.model(tokens, memory=here, labels=labels).losses
                for i, nats in zip(batch, losses.double().sum(1).tolist(), strict=True):
                    out[i] = -nats
        return out

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector a text: the mean of what the encoder makes of it, of length 1. -> float32 [N, D]."""
        return embed(self.model.encoder, self._sources(texts))

    def _settings(self, sampling: dict[str, Any], where: str) -> Sampling:
        return build(Sampling, {"temperature": 0.0, **sampling}, where)

    def _sources(self, sources: Sequence[str]) -> list[list[int]]:
        found = [self.encode(source) for source in sources]
        for number, ids in enumerate(found):
            self._fits(f"source {number}", ids)
        return found

    def _fits(self, what: str, ids: Sequence[int]) -> None:
        if not 0 < len(ids) <= self.max_len:
            raise UserError(f"{what} has {len(ids)} tokens and this model takes 1 to {self.max_len}; shorten it.")

    def _rows(self, prompts: Sequence[Sequence[int]], settings: Sampling) -> list[Generation]:
        limit = min(settings.max_new_tokens, self.max_len - 1)
        return [
            Generation(list(ids), settings, dice, limit, TextStream(settings.stop))
            for ids, dice in zip(prompts, generators(prompts, settings.seed), strict=True)
        ]

    def _read(self, sources: Sequence[Sequence[int]]) -> Memory:
        """The memory of sources, padded on the right; padding is seen by nobody."""
        longest = max(len(ids) for ids in sources)
        lengths = torch.tensor([len(ids) for ids in sources], device=self.device)
        inputs = torch.tensor([[*ids, *[0] * (longest - len(ids))] for ids in sources], device=self.device)
        real = torch.arange(longest, device=self.device) < lengths[:, None]
        with torch.inference_mode():
            return self.model.encode(inputs, documents=None if bool(real.all()) else real.long())

    def _steps(self, rows: Sequence[Generation], sources: Sequence[Sequence[int]]) -> Iterator[None]:
        words = min(self.tokenizer.vocab_size, self.config.vocab_size)
        memory = self._read(sources)
        start = [[self.start] for _ in rows]
        return after(self.model, memory, rows, start, self.rules, self.tokenizer.token_bytes, words)


def after(
    model: EncoderDecoder,
    memory: Memory,
    rows: Sequence[Generation],
    start: Sequence[Sequence[int]],
    rules: Rules,
    token_bytes: Any,
    words: int,
) -> Iterator[None]:
    """`write` the rows after `start`, reading `memory`; what has ended leaves the cache and the memory.

    The first `words` words are drawn from: a table may be padded beyond those of the tokenizer.
    """
    reading = [memory]
    with torch.inference_mode():
        cache = model.new_cache(len(rows), len(start[0]) + max(row.limit for row in rows))

    def step(tokens: Tensor) -> Tensor:
        logits: Tensor = model(tokens, memory=reading[0], cache=cache, last_only=True).logits
        return logits[:, 0, :words]

    def keep(index: Tensor) -> None:
        cache.rows(index)
        reading[0] = reading[0].rows(index)

    return write(rows, start, step, keep, rules, token_bytes, memory.hidden.device)
