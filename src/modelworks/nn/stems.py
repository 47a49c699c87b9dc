"""Stems: what turns a batch into vectors for the stack. Shapes: B batch, T time, D width, V words."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from ..base.errors import UserError
from .layout import Layout


class Tokens(nn.Module):
    """Token embeddings: int64 [B, T] -> [B, T, D]. `perturb` [B, T, D] is added to them (adversarial training)."""

    def __init__(self, tokens: nn.Embedding, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.dropout = tokens, dropout

    def forward(self, tokens: Tensor, layout: Layout, perturb: Tensor | None = None) -> Tensor:
        x = F.embedding(tokens, self.tokens.weight)
        if perturb is not None:
            x = x + perturb
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


class PositionedTokens(nn.Module):
    """Token plus learned position embeddings, as in GPT-2: int64 [B, T] -> [B, T, D].

    Raises UserError when a text is longer than the table of positions.
    """

    def __init__(self, tokens: nn.Embedding, positions: nn.Embedding, dropout: float = 0.0) -> None:
        super().__init__()
        self.tokens, self.positions, self.dropout = tokens, positions, dropout

    def forward(self, tokens: Tensor, layout: Layout, perturb: Tensor | None = None) -> Tensor:
        if layout.end > self.positions.num_embeddings:
            raise UserError(
                f"the text has {layout.end} tokens and this model has {self.positions.num_embeddings} positions; "
                "shorten it or use a model with a larger max_len."
            )
        x = F.embedding(tokens, self.tokens.weight) + F.embedding(layout.positions, self.positions.weight)
        if perturb is not None:
            x = x + perturb
        return F.dropout(x, self.dropout, self.training) if self.dropout else x
