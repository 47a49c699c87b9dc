"""A language model to use: generate, chat, score, embed, classify. Shapes: B batch, T time, V words, D width."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, overload

import torch
from torch import Tensor

from modelworks.base.config import build
from modelworks.base.errors import UserError
from modelworks.data import chat as chat_format
from modelworks.data.tokenizer import Tokenizer
from modelworks.nn.transformer import Transformer

from .engine import Engine, evaluating
from .sampling import Sampling


class LanguageModel:
    """A built model with its tokenizer, as `mw.load` returns it. `facts` is what modelworks.json says."""

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.model = model.eval()
        self.family, self.config, self.facts = family, config, facts or {}
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError where the folder had none (then only `logits` works)."""
        if self._tokenizer is None:
            raise UserError("this model has no tokenizer.json beside it; copy the one it was trained with there.")
        return self._tokenizer

    @property
    def max_len(self) -> int:
        """The context in tokens."""
        return int(self.config.max_len)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @cached_property
    def engine(self) -> Engine:
        """What generates and scores."""
        return Engine(self.model, self.tokenizer, self.max_len)

    def logits(self, tokens: Tensor) -> Tensor:
        """int64 [B, T] -> float32 [B, T, V]. Raises UserError for another shape or type, or an unknown id."""
        if not isinstance(tokens, Tensor) or tokens.dim() != 2 or tokens.dtype != torch.int64:
            raise UserError("tokens must be an int64 tensor of shape [batch, seq].")
        vocab_size = self.config.vocab_size
        if tokens.numel() == 0 or tokens.shape[1] > self.max_len:
            raise UserError(f"tokens has shape {list(tokens.shape)}; 1 to {self.max_len} tokens a row are possible.")
        if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
            raise UserError(f"a token id is outside 0 to {vocab_size - 1}; encode with the model's own tokenizer.")
        with evaluating(self.model), torch.no_grad():
            logits: Tensor = self.model(tokens.to(self.device)).logits
        return logits

    def generate(self, prompt: str, **sampling: Any) -> str:
        """The continuation of `prompt` (without it); `sampling` are the settings of `Sampling`.

        Raises UserError for a prompt that is too long or a setting that is unknown or out of range.
        """
        settings = build(Sampling, sampling, "generate")
        return self.engine.sample([self.encode(prompt)], **settings.model_dump())[0].text

    def stream(self, prompt: str, **sampling: Any) -> Iterator[str]:
        """`generate`, piece by piece."""
        return self.engine.stream(self.encode(prompt), build(Sampling, sampling, "stream"))

    @overload
    def chat(self, messages: Sequence[dict[str, str]], stream: Literal[False] = False, **sampling: Any) -> str: ...

    @overload
    def chat(self, messages: Sequence[dict[str, str]], stream: Literal[True], **sampling: Any) -> Iterator[str]: ...

    def chat(self, messages: Sequence[dict[str, str]], stream: bool = False, **sampling: Any) -> str | Iterator[str]:
        """The assistant's next turn after messages of {"role", "content"}; with `stream`, its pieces.

        Raises UserError where the messages are malformed, too long, or the tokenizer has no chat tokens.
        """
        settings = build(Sampling, sampling, "chat")
        ids = self.chat_prompt(messages)
        if stream:
            return self.engine.stream(ids, settings)
        return self.engine.sample([ids], **settings.model_dump())[0].text

    def encode(self, prompt: str) -> list[int]:
        """Ids of a prompt; an empty one becomes the mark between documents."""
        return self.tokenizer.encode(prompt) or [self.tokenizer.eos]

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
        return [nats for nats, _ in self.engine.scores([self._pair(prompt, text) for text in continuations])]

    def _pair(self, prompt: str, continuation: str) -> tuple[list[int], list[int]]:
        start, whole = self.encode(prompt), self.tokenizer.encode(prompt + continuation)
        if prompt and whole[: len(start)] == start:
            return start, whole[len(start) :]
        return start, self.tokenizer.encode(continuation)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """A vector a text: the mean of the last hidden states, of length 1. -> float32 [N, D].

        Raises UserError for a text that outgrows the context.
        """
        ids = [self.encode(text) for text in texts]
        self._fits(ids)
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        out = torch.zeros(len(ids), 0)
        with evaluating(self.model), torch.no_grad():
            for start in range(0, len(order), 32):
                rows = order[start : start + 32]
                longest = max(len(ids[i]) for i in rows)
                tokens = torch.tensor([ids[i] + [0] * (longest - len(ids[i])) for i in rows], device=self.device)
                hidden = self.model(tokens, last_only=True).hidden.float()
                lengths = torch.tensor([len(ids[i]) for i in rows], device=self.device)
                real = (torch.arange(longest, device=self.device) < lengths[:, None]).unsqueeze(2)
                means = (hidden * real).sum(1) / lengths[:, None]
                if out.shape[1] == 0:
                    out = torch.zeros(len(ids), means.shape[1])
                out[rows] = torch.nn.functional.normalize(means, dim=1).cpu()
        return out

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
        nats = torch.tensor([score for score, _ in self.engine.scores(pairs)], dtype=torch.float64)
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
