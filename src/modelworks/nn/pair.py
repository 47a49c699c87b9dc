"""A pair of towers: texts and images become vectors in one space. N texts, M images, E width of that space."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from .transformer import Transformer


@dataclass(slots=True)
class Matched:
    """`texts` [N, E] and `images` [M, E] of length one; `logits` float32 [N, M]: how well they go together."""

    texts: Tensor
    images: Tensor
    logits: Tensor


class Pair(nn.Module):
    """Two transformers whose heads pool, and a projection after each (Radford et al. 2021, CLIP).

    logits = cosine * exp(scale) + bias; CLIP has no bias, SigLIP (Zhai et al. 2023) learns one.
    """

    def __init__(
        self,
        text: Transformer,
        image: Transformer,
        text_projection: nn.Module,
        image_projection: nn.Module,
        scale: nn.Parameter,
        bias: nn.Parameter | None = None,
    ) -> None:
        super().__init__()
        self.text, self.image = text, image
        self.text_projection, self.image_projection = text_projection, image_projection
        self.scale, self.bias = scale, bias

    def embed_texts(self, tokens: Tensor, documents: Tensor | None = None) -> Tensor:
        """int64 [N, T] -> [N, E] of length one; `documents` is 0 where there is padding."""
        return F.normalize(self.text_projection(self.text(tokens, documents=documents).pooled), dim=-1)

    def embed_images(self, pixels: Tensor) -> Tensor:
        """float [M, channels, height, width] -> [M, E] of length one."""
        return F.normalize(self.image_projection(self.image(pixels).pooled), dim=-1)

    def forward(self, tokens: Tensor, pixels: Tensor, documents: Tensor | None = None) -> Matched:
        texts, images = self.embed_texts(tokens, documents), self.embed_images(pixels)
        logits = (texts @ images.t()).float() * self.scale.float().exp()
        if self.bias is not None:
            logits = logits + self.bias.float()
        return Matched(texts, images, logits)
