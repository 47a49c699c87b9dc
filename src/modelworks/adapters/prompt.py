"""Prompt tuning: learned embeddings in front of the text (Lester et al. 2021, arXiv:2104.08691).

In a causal model the virtual tokens see only each other. So they are run once a pass, alone, and the text reads what
each layer made of them: the same numbers as running them again in front of every row, for the price of P tokens. While
nothing learns they are run once for all. As with a prefix, nothing can be merged and no start changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ..base.config import Settings
from ..base.errors import UserError
from ..nn.transformer import Transformer
from . import _peft, _virtual
from ._sites import Host, Site
from ._wrapped import Built

MERGES, STARTS_AS_IDENTITY, PEFT_TYPE = False, False, "PROMPT_TUNING"


class Config(Settings):
    """How many virtual tokens there are."""

    tokens: int = Field(20, ge=1)
    """Virtual tokens in front of the text; they take places of the context."""


class Prompt(nn.Module):
    """Embeddings of P virtual tokens, [P, D]."""

    def __init__(self, embeddings: Tensor) -> None:
        super().__init__()
        self.embeddings = nn.Parameter(embeddings)
        self.count = len(embeddings)
        self._kept: tuple[int, _virtual.KeysValues] | None = None

    def keys_values(self, model: Transformer) -> _virtual.KeysValues:
        """What each layer makes of them: [1, K, P, D]. Remembered while no gradient is asked for."""
        if torch.is_grad_enabled() or model.training:
            self._kept = None
            return _virtual.run_alone(model, self.embeddings)
        if self._kept is None or self._kept[0] != self.embeddings._version:
            self._kept = (self.embeddings._version, _virtual.run_alone(model, self.embeddings))
        return self._kept[1]


def build(host: Host, config: Config, generator: torch.Generator) -> Built:
    """Embeddings of drawn words. Raises UserError for a model that is no decoder, or has no room for them."""
    model, _ = _virtual.check(host)
    room = getattr(host.config, "max_len", None)
    if room is not None and config.tokens >= room:
        raise UserError(f"tokens: {config.tokens} virtual tokens leave no room in a context of {room}; use fewer.")
    table = model.stem.tokens.weight.detach()
    words = table[torch.randint(len(table), (config.tokens,), generator=generator)].float() * model.stem.scale
    return Built(host, {}, [], Prompt(words.clone()))


def tensors(built: Built) -> dict[str, Tensor]:
    """PEFT's one tensor: [P, D]."""
    prompt: Any = built.shared
    return {"prompt_embeddings": prompt.embeddings}


def fill(built: Built, shelf: _peft.Shelf) -> None:
    """Put a file's tensor into a fresh prompt. Raises UserError where it has another shape."""
    prompt: Any = built.shared
    prompt.embeddings.copy_(shelf.take("prompt_embeddings", prompt.embeddings.shape))


def is_mine(told: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this kind."""
    return told.get("peft_type") == PEFT_TYPE


def to_peft(host: Host, config: Config, built: Built) -> dict[str, Any]:
    """The settings as PEFT names them."""
    model, layers = _virtual.check(host)
    return {
        "num_virtual_tokens": config.tokens,
        "num_layers": len(layers),
        "num_attention_heads": layers[0].query.out_features // layers[0].d_head,
        "token_dim": model.stem.tokens.embedding_dim,
        "num_transformer_submodules": 1,
        "prompt_tuning_init": "RANDOM",
        "prompt_tuning_init_text": None,
        "modules_to_save": None,
    }


READ = _peft.Fields(
    read=("num_virtual_tokens",),
    only={"num_transformer_submodules": (1, None), "modules_to_save": (None, [])},
    # how it began is past; the sizes are checked on the tensor
    neutral=(
        "prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs", "num_layers",
        "num_attention_heads", "token_dim",
    ),
)  # fmt: skip


def from_peft(told: Mapping[str, Any], shelf: _peft.Shelf, sites: list[Site]) -> dict[str, Any]:
    """Our settings from PEFT's."""
    return {"tokens": told.get("num_virtual_tokens") or 20}
