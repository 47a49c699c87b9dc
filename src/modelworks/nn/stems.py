"""Stems: what turns a batch into vectors for the stack. Shapes: B batch, T time, D width, V words.

A stem is called `stem(inputs, layout, perturb)`, where `perturb` [B, T, D] is added to the embeddings (adversarial
training); `length(inputs)` says how many vectors it will make of each row.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import UserError
from .layout import Layout


class Tokens(nn.Module):
    """Token embeddings: int64 [B, T] -> [B, T, D]; `scale` multiplies them (Gemma, the original transformer)."""

    def __init__(self, tokens: nn.Embedding, dropout: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.tokens, self.dropout, self.scale = tokens, dropout, scale

    def length(self, inputs: Tensor) -> int:
        return inputs.shape[1]

    def forward(self, tokens: Tensor, layout: Layout, perturb: Tensor | None = None) -> Tensor:
        return self.finish(self.embed(tokens, layout), perturb)

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        """The embeddings before anything is added by an attack or dropped."""
        x = F.embedding(tokens, self.tokens.weight)
        return x if self.scale == 1.0 else x * self.scale

    def finish(self, x: Tensor, perturb: Tensor | None) -> Tensor:
        if perturb is not None:
            x = x + perturb.to(x.dtype)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class PositionedTokens(Tokens):
    """Token plus position embeddings from a table, as in GPT-2: int64 [B, T] -> [B, T, D].

    `offset` rows of the table stand before position 0 (RoBERTa, BART). Raises UserError when a document is
    longer than the table.
    """

    def __init__(
        self,
        tokens: nn.Embedding,
        positions: nn.Embedding,
        dropout: float = 0.0,
        scale: float = 1.0,
        offset: int = 0,
    ) -> None:
        super().__init__(tokens, dropout, scale)
        self.positions, self.offset = positions, offset

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        room, at = self.positions.num_embeddings - self.offset, layout.positions
        if layout.end > room:  # a row of several documents may be longer than any of them
            at = at if layout.documents is None else torch.where(layout.documents != 0, at, 0)
            if (longest := int(at.max()) + 1) > room:
                raise UserError(
                    f"the text has {longest} tokens and this model has {room} positions; "
                    "shorten it or use a model with a larger max_len."
                )
        at = at + self.offset if self.offset else at
        return super().embed(tokens, layout) + F.embedding(at, self.positions.weight)


class TypedTokens(PositionedTokens):
    """BERT's: words, positions and token types (`layout.types`, else 0), then a norm. int64 [B, T] -> [B, T, D]."""

    def __init__(
        self,
        tokens: nn.Embedding,
        positions: nn.Embedding,
        types: nn.Embedding,
        norm: nn.Module,
        dropout: float = 0.0,
        offset: int = 0,
    ) -> None:
        super().__init__(tokens, positions, dropout, offset=offset)
        self.types, self.norm = types, norm

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        kinds = torch.zeros_like(tokens[:1, :1]) if layout.types is None else layout.types
        return self.norm(super().embed(tokens, layout) + F.embedding(kinds, self.types.weight))


class Patches(nn.Module):
    """An image cut into patches, class tokens before them, positions added (Dosovitskiy et al. 2021, ViT).

    pixels float [B, channels, height, width] -> [B, n + P, D]: `project` is a convolution whose stride is its
    kernel, `firsts` the n class and distillation tokens [..., D], `positions` [..., n + P, D], `norm` what CLIP
    does to the sum. Raises UserError when the image is not of the size that the positions are for.
    """

    def __init__(
        self,
        project: nn.Conv2d,
        positions: nn.Parameter,
        firsts: Iterable[nn.Parameter] = (),
        norm: nn.Module | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.project, self.positions, self.norm = project, positions, norm or nn.Identity()
        self.firsts = nn.ParameterList(firsts)
        self.dropout = dropout

    def length(self, inputs: Tensor) -> int:
        (high, wide), (h, w), room = inputs.shape[-2:], self.project.kernel_size, self.positions.shape[-2]
        length = (high // h) * (wide // w) + len(self.firsts)
        if length != room or high % h or wide % w:
            raise UserError(
                f"an image of {high} x {wide} pixels makes {length} vectors and this model has {room} positions; "
                "resize the image to the model's size."
            )
        return length

    def forward(self, pixels: Tensor, layout: Layout, perturb: Tensor | None = None) -> Tensor:
        (h, w), weight = self.project.kernel_size, self.project.weight
        cut = pixels.to(weight.dtype).unflatten(3, (-1, w)).unflatten(2, (-1, h))  # [B, C, high, h, wide, w]
        patches = cut.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = F.linear(patches, weight.flatten(1), self.project.bias)
        if len(self.firsts):
            firsts = torch.stack([first.reshape(-1) for first in self.firsts]).to(x.dtype)
            x = torch.cat((firsts.expand(x.shape[0], -1, -1), x), 1)
        x = self.norm(x + self.positions)
        if perturb is not None:
            x = x + perturb.to(x.dtype)
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
