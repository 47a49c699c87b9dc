"""Vision and language: what a tower sees stands where a text has image tokens. B batch, T time, N images, P patches."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import UserError
from ..base.protocols import Output
from .cache import KVCache
from .layout import Layout
from .memory import Memory
from .stems import Tokens
from .transformer import Transformer


class Illustrated(Tokens):
    """Token embeddings, with `layout.memory` [N, P, D] in the places of `image_token`, in order.

    Raises UserError when the text has not as many image tokens as the images have vectors.
    """

    def __init__(self, tokens: nn.Embedding, image_token: int, dropout: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(tokens, dropout, scale)
        self.image_token = image_token

    def embed(self, tokens: Tensor, layout: Layout) -> Tensor:
        x = super().embed(tokens, layout)
        if layout.memory is None:
            return x
        seen = layout.memory.hidden.flatten(0, 1).to(x.dtype)
        places = tokens == self.image_token
        if int(places.sum()) != len(seen):
            raise UserError(
                f"the text has {int(places.sum())} image tokens and the images make {len(seen)} vectors; "
                f"write token {self.image_token} once for each vector ({layout.memory.hidden.shape[1]} an image)."
            )
        return x.masked_scatter(places[..., None], seen)


class VisionLanguage(nn.Module):
    """A vision tower, a projector and a decoder whose stem is `Illustrated` (Liu et al. 2023, LLaVA).

    `depth` blocks of the tower are run, and its first `skip` vectors left out.
    """

    def __init__(
        self, image: Transformer, projector: nn.Module, decoder: Transformer, *, depth: int, skip: int
    ) -> None:
        super().__init__()
        self.image, self.projector, self.decoder = image, projector, decoder
        self.depth, self.skip = depth, skip

    def see(self, pixels: Tensor) -> Memory:
        """pixels float [N, channels, height, width] -> what the decoder reads, [N, P, D]."""
        layout = Layout(pixels, seq=self.image.stem.length(pixels))
        x = self.image.stem(pixels, layout)
        for block in self.image.stack.blocks[: self.depth]:
            x = block(x, layout)
        return Memory(self.projector(x[:, self.skip :]))

    def forward(
        self,
        tokens: Tensor,
        *,
        pixels: Tensor | None = None,
        documents: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Output:
        """Run `tokens` int64 [B, T] with the images [N, ...] that stand in them; the rest as `Transformer.forward`.

        When a text is continued from a cache, the images were in what is cached, and `pixels` are not given again.
        """
        memory = None if pixels is None else self.see(pixels)
        return self.decoder(
            tokens,
            documents=documents,
            perturb=perturb,
            labels=labels,
            cache=cache,
            memory=memory,
            last_only=last_only,
        )

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache with room for `max_len` tokens in each of `batch` rows."""
        return self.decoder.new_cache(batch, max_len)


class Projector(nn.Module):
    """Two matrices with GELU between: [N, P, width of the tower] -> [N, P, D] (LLaVA 1.5)."""

    def __init__(self, first: nn.Linear, second: nn.Linear) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor) -> Tensor:
        return self.second(F.gelu(self.first(x)))
