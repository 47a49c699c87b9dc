"""A language model to use: generate, chat, score, embed, classify. Shapes: B batch, T time, V words, D width."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor

from modelworks.adapters import _attached, _folder
from modelworks.base.config import build
from modelworks.base.errors import UserError
from modelworks.data import chat as chat_format
from modelworks.data.tokenizer import Tokenizer
from modelworks.nn.transformer import Transformer

from .encoder import embed
from .engine import Engine, evaluating
from .opened import Opened
from .sampling import Sampling


class LanguageModel(Opened):
    """A built model with its tokenizer, as `mw.load` returns it. `facts` is what modelworks.json says.

    `ends` are tokens that end a text besides the tokenizer's own marks. It may have adapters: `attach` opens one
    beside the weights, `with_adapter` is this model with one of them at work, and `generate`, `stream` and
    `chat` take `adapter=NAME` (None: the base alone) for a single request.
    """

    model: Transformer
    adapter: str | None = None
    """The adapter at work; '' is the base alone, None whatever the model uses."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        ends: Sequence[int] = (),
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts)
        self.ends = tuple(ends)

    @property
    def max_len(self) -> int:
        """The context in tokens."""
        return int(self.config.max_len)

    @cached_property
    def engine(self) -> Engine:
        """What generates and scores."""
        engine = Engine(self.model, self.tokenizer, self.max_len)
        engine.stop_tokens |= set(self.ends)
        return engine

    @property
    def adapters(self) -> list[str]:
        """The names of its adapters."""
        return _attached.names(self.model)

    def attach(self, folder: str | Path, name: str | None = None) -> str:
        """Open an adapter's folder (ours or peft's) beside the weights; returns its name, the folder's unless given.

        What this model does stays the same: name the adapter to use it. Raises UserError for an adapter of another
        base or a name that is taken, DamagedError.
        """
        name = name or _attached.name_of(folder)
        before = _attached.in_use(self.model)
        _folder.load(self.model, self.family, self.config, folder, name=name)
        _attached.use(self.model, before)
        self.adapter = "" if self.adapter is None and before is None else self.adapter
        return name

    def with_adapter(self, name: str | None) -> Self:
        """The same weights and engine, with that adapter at work (None: without any). Raises UserError."""
        if name and name not in self.adapters:
            with _attached.using(self.model, name):  # says what there is
                pass
        if self._tokenizer is not None:
            self.engine  # noqa: B018 - made once, for all
        view = copy.copy(self)
        view.adapter = name or ""
        return view

    def _working(self) -> AbstractContextManager[None]:
        return nullcontext() if self.adapter is None else _attached.using(self.model, self.adapter or None)

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> float32 [B, T, V]. Raises UserError for another shape or type, or an unknown id."""
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise UserError("tokens must be an int64 tensor of shape [batch, seq].")
        vocab_size = self.config.vocab_size
        if tokens.numel() == 0 or tokens.shape[1] > self.max_len:
            raise UserError(f"tokens has shape {list(tokens.shape)}; 1 to {self.max_len} tokens a row are possible.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
            raise UserError(f"a token id is outside 0 to {vocab_size - 1}; encode with the model's own tokenizer.")
        with evaluating(self.model), torch.no_grad(), self._working():
            logits: Tensor = self.model(tokens.to(self.device)).logits
        return logits.float()

    def generate(self, prompt: str, **sampling: Any) -> str:
        """The continuation of `prompt` (without it); `sampling` are the settings of `Sampling`.

        Raises UserError for a prompt that is too long or a setting that is unknown or out of range.
        """
        if "adapter" in sampling:
            return self.with_adapter(sampling.pop("adapter")).generate(prompt, **sampling)
        settings = build(Sampling, sampling, "generate")
        return self.engine.sample([self.encode(prompt)], adapter=self.adapter, **settings.model_dump())[0].text

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """`generate`, piece by piece."""
        if "adapter" in sampling:
            return self.with_adapter(sampling.pop("adapter")).stream(prompt, **sampling)
        return self.engine.stream(self.encode(prompt), build(Sampling, sampling, "stream"), self.adapter)

    @overload
    def chat(self, messages: Sequence[dict[str, str]], stream: Literal[False] = False, **sampling: Any) -> str: ...

    @overload
    def chat(self, messages: Sequence[dict[str, str]], stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def chat(self, messages: Sequence[dict[str, str]], stream: bool = False, **sampling: Any) -> str | Iterator[str]:
        """The assistant's next turn after messages of {"role", "content"}; with `stream`, its pieces.

        Raises UserError where the messages are malformed, too long, or the tokenizer has no chat tokens.
        """
        if "adapter" in sampling:
            view = self.with_adapter(sampling.pop("adapter"))
            return view.chat(messages, stream=True, **sampling) if stream else view.chat(messages, **sampling)
        settings = build(Sampling, sampling, "chat")
        ids = self.chat_prompt(messages)
        if stream:
            return self.engine.stream(ids, settings, self.adapter)
        return self.engine.sample([ids], adapter=self.adapter, **settings.model_dump())[0].text

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt after what the tokenizer puts before a text; an empty one becomes the mark between
        documents."""
        return self._begun(prompt) or [self.tokenizer.eos]

    def _begun(self, text: str) -> list[int]:
        return [*self.tokenizer.around[0], *self.tokenizer.encode(text)]

    def chat_prompt(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids after which the model speaks as the assistant. Raises UserError where there is no message."""
        if not messages:
            raise UserError("there is no message to answer; give at least one.")
        return chat_format.encode(self.tokenizer, messages, add_generation_prompt=True)[0]  # type: ignore[arg-type]

    def score(self, prompt: str, continuations: Sequence[str]) -> list[float]:
        """Log-probability in nats of each continuation after `prompt`.

        The two are encoded together where that leaves the prompt's own tokens as they are, as when the model
        was trained. Raises UserError where they outgrow the context.
        """
        pairs = [self._pair(prompt, text) for text in continuations]
        return [nats for nats, _ in self.engine.scores(pairs, self.adapter)]

    def _pair(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        start, whole = self.encode(prompt), self._begun(prompt + continuation)
        if prompt and whole[: len(start)] == start:
            return start, whole[len(start) :]
        return start, self.tokenizer.encode(continuation)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector a text: the mean of the last hidden states, of length 1. -> float32 [N, D].

        Raises UserError for a text that outgrows the context.
        """
        ids = [self.encode(text) for text in texts]
        self._fits(ids)
        with self._working():
            return embed(self.model, ids)

    def classify(
        self, texts: Sequence[str], labels: Sequence[str], template: str = "{text}\nLabel: {label}"
    ) -> list[dict[str, Any]]:
        """The likeliest of `labels` for each text, without training for it: {"label", "probabilities": {label: p}}.

        Scores each label where `template` has `{label}` (it must stand at the end) after the text in its place.
        Raises UserError where there are fewer than two labels or the template is not of that form.
        """
        if len(set(labels)) < 2:
            raise UserError("classify needs at least two different labels.")
        before, mark, after = template.partition("{label}")
        if not mark or after or "{text}" not in before:
            raise UserError("the template must contain {text} and end with {label}.")
        kept = before.rstrip(" ")  # the space belongs to the label's first token
        space = before[len(kept) :]
        pairs = [self._pair(kept.replace("{text}", text), space + label) for text in texts for label in labels]
        nats = torch.tensor([score for score, _ in self.engine.scores(pairs, self.adapter)], dtype=torch.float64)
        out = []
        for row in nats.view(len(texts), len(labels)).softmax(dim=1).tolist():
            best = max(range(len(labels)), key=row.__getitem__)
            out.append({"label": labels[best], "probabilities": dict(zip(labels, row, strict=True))})
        return out

    def _fits(self, many: Sequence[Sequence[int]]) -> None:
        for number, ids in enumerate(many):
            if len(ids) > self.max_len:
                raise UserError(
                    f"text {number} has {len(ids)} tokens and the model's context is {self.max_len}; shorten it."
                )
