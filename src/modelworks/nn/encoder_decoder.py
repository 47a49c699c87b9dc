"""Encoder and decoder: one stack reads, another writes while it reads the memory. B batch, S source, T target."""

from __future__ import annotations

from torch import Tensor, nn

from ..base.protocols import Output
from .cache import KVCache
from .memory import Memory
from .transformer import Transformer


class EncoderDecoder(nn.Module):
    """Two transformers: `encoder` has no head, the blocks of `decoder` have cross-attention."""

    def __init__(self, encoder: Transformer, decoder: Transformer) -> None:
        super().__init__()
        self.encoder, self.decoder = encoder, decoder

    def encode(self, inputs: Tensor, *, documents: Tensor | None = None, perturb: Tensor | None = None) -> Memory:
        """What the decoder reads: `inputs` int64 [B, S] (or what else the encoder's stem takes); 0 is padding."""
        return Memory(self.encoder(inputs, documents=documents, perturb=perturb).hidden, documents)

    def forward(
        self,
        tokens: Tensor,
        *,
        inputs: Tensor | None = None,
        input_documents: Tensor | None = None,
        memory: Memory | None = None,
        documents: Tensor | None = None,
        perturb: Tensor | None = None,
        labels: Tensor | None = None,
        cache: KVCache | None = None,
        last_only: bool = False,
    ) -> Output:
        """Run target `tokens` int64 [B, T] over source `inputs` [B, S], or over the `memory` made of it before.

        `documents` [B, T] and `input_documents` [B, S] keep packed pairs apart by equal ids; 0 is padding.
        `perturb` [B, S, D] is added to the source's embeddings. The rest is as in `Transformer.forward`.
        """
        if memory is None:
            if inputs is None:
                raise ValueError("an encoder-decoder reads inputs, or the memory made of them.")
            memory = self.encode(inputs, documents=input_documents, perturb=perturb)
        return self.decoder(tokens, documents=documents, labels=labels, cache=cache, memory=memory, last_only=last_only)

    def new_cache(self, batch: int, max_len: int) -> KVCache:
        """An empty cache for the decoder with room for `max_len` tokens in each of `batch` rows."""
        return self.decoder.new_cache(batch, max_len)
