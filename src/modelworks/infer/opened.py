"""What every opened model has: weights, perhaps a tokenizer, facts, and a sentence for what it cannot do."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from modelworks.base.errors import UserError
from modelworks.data.tokenizer import Tokenizer

VERBS = (
    "generate", "stream", "chat", "transcribe", "score", "classify", "tag", "fill_mask", "match", "embed",
    "embed_texts", "embed_images", "logits",
)  # fmt: skip
"""What models can be asked; each kind does some of them."""


class Cannot(UserError, AttributeError):
    """A model was asked what its kind does not do."""


class Opened:
    """A model of some kind, as `mw.load` returns it. `facts` is what modelworks.json says.

    Raises `Cannot` (a UserError) for one of `VERBS` that its kind does not have.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Tokenizer | None, family: str, config: Any, facts: dict[str, Any] | None
    ) -> None:
        self.model = model.eval()
        self.family, self.config, self.facts = family, config, facts or {}
        self._tokenizer = tokenizer

    @property
    def tokenizer(self) -> Tokenizer:
        """Raises UserError where the folder had none."""
        if self._tokenizer is None:
            raise UserError("this model has no tokenizer.json beside it; copy the one it was trained with there.")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    def __getattr__(self, name: str) -> Any:
        if name not in VERBS:
            raise AttributeError(f"'{type(self).__name__}' has no attribute '{name}'")
        can = [verb for verb in VERBS if hasattr(type(self), verb)]
        head = getattr(self.config, "head", None)
        which = f"a {self.family}" if head is None else f"a {self.family} with the head '{head}'"
        raise Cannot(f"{which} does not {name}; it can {', '.join(can)}.")
