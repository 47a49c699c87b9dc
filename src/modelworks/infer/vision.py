"""Models that look at images: classes, vectors, and texts that match. M images, N texts, C classes, E width."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modelworks.base.errors import UserError
from modelworks.data.pixels import Preparation
from modelworks.data.tokenizer import Tokenizer
from modelworks.nn.heads import Last
from modelworks.nn.pair import Pair

from .opened import Opened
from .text_heads import verdict

IMAGES = 32
"""Images in a batch."""


class Vision(Opened):
    """A vision transformer. `prepare` makes images ready; `labels` {class: name}."""

    def __init__(
        self,
        model: nn.Module,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        prepare: Preparation,
        labels: Mapping[int, str] | None = None,
        problem: str | None = None,
    ) -> None:
        super().__init__(model, None, family, config, facts)
        self.prepare, self.problem = prepare, problem
        known = labels if labels is not None and len(labels) == config.n_labels else {}
        self.labels = [known.get(number, f"LABEL_{number}") for number in range(config.n_labels)]

    def classify(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """The likeliest class of each image (pillow's, or a path): {"label", "score", "probabilities": {label: p}}.

        Raises UserError for a file that is no image, and for a model without classes.
        """
        if self.config.head == "none":
            raise UserError(f"this {self.family} has no head for classes; `embed` is what it does.")
        with torch.inference_mode():
            rows = [row for pixels in _batches(self, images) for row in self.model(pixels).logits.float().cpu()]
        return [verdict(row, self.labels, self.problem) for row in rows]

    def embed(self, images: Sequence[Any]) -> Tensor:
        """A vector an image: that of the class token after the last norm, of length 1. -> float32 [M, D]."""
        with torch.inference_mode():
            rows = [self.model(pixels).hidden[:, 0].float().cpu() for pixels in _batches(self, images)]
        return nn.functional.normalize(torch.cat(rows), dim=-1)


def _batches(model: Any, images: Sequence[Any]) -> Iterator[Tensor]:
    if not isinstance(images, list | tuple) or not images:
        raise UserError("images are a list of pillow images or paths, at least one.")
    for start in range(0, len(images), IMAGES):
        yield model.prepare(images[start : start + IMAGES]).to(model.device)


class Matcher(Opened):
    """A pair of towers, for texts and for images, that meet in one space."""

    model: Pair

    def __init__(
        self,
        model: Pair,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        prepare: Preparation,
        pad: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts)
        self.prepare, self.pad = prepare, pad

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """float32 [N, E] of length 1. Raises UserError for a text that is empty or too long."""
        rows, room = [self.tokenizer.encode(text, special=True) for text in texts], self.config.text.max_len
        for number, ids in enumerate(rows):
            if not 0 < len(ids) <= room:
                raise UserError(f"text {number} has {len(ids)} tokens and this model takes 1 to {room}; shorten it.")
        if not rows:
            raise UserError("there is no text; give at least one.")
        # The vector of the last token stands for the text, or that of the last place, padding or not (SigLIP).
        whole = not isinstance(self.model.text.head.pool, Last)
        if whole and self.pad is None and any(len(ids) < room for ids in rows):
            raise UserError("the tokenizer has no pad_token, and this model reads padded texts; name it there.")
        longest = room if whole else max(map(len, rows))
        pad = self.pad if whole and self.pad is not None else 0
        tokens = torch.tensor([[*ids, *[pad] * (longest - len(ids))] for ids in rows], device=self.device)
        real = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids in rows], device=self.device)
        with torch.inference_mode():
            return self.model.embed_texts(tokens, None if whole or bool(real.all()) else real).float().cpu()

    def embed_images(self, images: Sequence[Any]) -> Tensor:
        """float32 [M, E] of length 1, of pillow images or paths. Raises UserError for a file that is no image."""
        with torch.inference_mode():
            return torch.cat([self.model.embed_images(pixels).float().cpu() for pixels in _batches(self, images)])

    def match(self, images: Sequence[Any], texts: Sequence[str]) -> Tensor:
        """How probably each text goes with each image: float32 [M, N].

        Of a model taught by contrast (CLIP) the texts share a probability of 1; one taught by yes or no (SigLIP)
        judges each pair for itself.
        """
        with torch.inference_mode():
            logits = self.embed_images(images) @ self.embed_texts(texts).t() * self.model.scale.float().exp().cpu()
            if self.model.bias is None:
                return logits.softmax(1)
            return (logits + self.model.bias.float().cpu()).sigmoid()
