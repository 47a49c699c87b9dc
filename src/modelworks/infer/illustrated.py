"""A model that writes about texts with images in them (LLaVA). T time, N images, P vectors an image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from modelworks.base.config import build
from modelworks.base.errors import UserError
from modelworks.data.pixels import Preparation
from modelworks.data.tokenizer import Tokenizer
from modelworks.nn.vision_language import VisionLanguage

from .sampling import Sampling, generators
from .scheduler import Generation
from .streaming import TextStream
from .writing import Writer, finished, pieces, write

IMAGE = "<image>"
"""What stands in a text for an image."""


class Illustrated(Writer):
    """A vision-language model. `prepare` makes pixels of an image."""

    model: VisionLanguage

    def __init__(
        self,
        model: VisionLanguage,
        tokenizer: Tokenizer | None,
        family: str,
        config: Any,
        facts: dict[str, Any] | None = None,
        *,
        prepare: Preparation,
        generation: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(model, tokenizer, family, config, facts, generation=generation)
        self.prepare = prepare

    def generate(self, text: str, images: Sequence[Any] = (), **sampling: Any) -> str:
        """The continuation of a text with images (pillow's, or paths) where it has <image>, in order.

        Images of a text without that mark stand before it, a line each. `sampling` are the settings of `Sampling`.
        Raises UserError where marks and images are not equally many, a file is no image, or all is too long.
        """
        row, steps = self._begun(text, images, sampling)
        for _ in steps:
            pass
        return finished(row, self.rules.ends, self.tokenizer.token_bytes).text

    def stream(self, text: str, images: Sequence[Any] = (), **sampling: Any) -> Iterator[str]:
        """`generate`, piece by piece."""
        return pieces(*self._begun(text, images, sampling))

    def _begun(self, text: str, images: Sequence[Any], sampling: dict[str, Any]) -> tuple[Generation, Iterator[None]]:
        images = [images] if isinstance(images, str) else list(images)
        settings = build(Sampling, {"temperature": 0.0, **sampling}, "generate")
        text = text if IMAGE in text else (IMAGE + "\n") * len(images) + text
        if text.count(IMAGE) != len(images):
            raise UserError(f"the text has {text.count(IMAGE)} times {IMAGE} and there are {len(images)} images.")
        pixels = self.prepare(images).to(self.device) if images else None
        ids = self._ids(text, pixels)
        room = self.config.text.max_len - len(ids)
        if room < 1:
            raise UserError(
                f"text and images have {len(ids)} tokens and the model's context is {self.config.text.max_len}; "
                "shorten the text or give fewer images."
            )
        row = Generation(
            ids, settings, generators([ids], settings.seed)[0], min(settings.max_new_tokens, room),
            TextStream(settings.stop),
        )  # fmt: skip
        return row, self._steps(row, pixels)

    def _ids(self, text: str, pixels: Tensor | None) -> list[int]:
        """Ids of the text; an image's token stands as often as the image has vectors."""
        token = self.config.image_token
        ids = [*self.tokenizer.around[0], *self.tokenizer.encode_marked(text, {IMAGE: token})]
        if pixels is None:
            return ids or [self.tokenizer.eos]
        count = self.model.image.stem.length(pixels) - self.model.skip
        return [id for word in ids for id in ([token] * count if word == token else [word])]

    def _steps(self, row: Generation, pixels: Tensor | None) -> Iterator[None]:
        seen = [pixels]
        words = self.config.vocab_size
        with torch.inference_mode():
            cache = self.model.new_cache(1, len(row.prompt) + row.limit)

        def step(tokens: Tensor) -> Tensor:
            logits: Tensor = self.model(tokens, pixels=seen[0], cache=cache, last_only=True).logits
            seen[0] = None  # they are in the cache from now on
            return logits[:, 0, :words]

        return write([row], [row.prompt], step, cache.rows, self.rules, self.tokenizer.token_bytes, self.device)
