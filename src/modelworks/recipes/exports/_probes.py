"""Texts to try an exported model on, and where its answers may part from ours."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...nn.stems import PositionedTokens, Tokens, TypedTokens

PROMPTS = ["The king said", "你好，世界", "def main():\n    "]
"""What an exported model continues where the user names nothing."""

TEXTS = [
    "The quick  brown\n\n\tfox's 1234 jumps; I'LL we'Ve don't",
    "你好，世界！标准库的文档。全角\u3000空格 １２３ ½ Ⅷ",
    "naïve café e\u0301 — 😀👍🏽 \u00a0x\u200b",
    "def f(x):\r\n    return x+1  # ok\r\n\r\n",
    "<|im_start|>user <|endoftext|> [PAD3] </s>",
    "  leading, trailing  \n \n  ",
    "Привет मानक ไทย עברית 한국어 かな",
    "",
]
"""What tokenizers disagree about: spaces, digits, scripts, line ends, control words that a user typed."""


def takes_tokens(model: nn.Module) -> bool:
    """True for a model that is called with token ids alone."""
    return isinstance(getattr(model, "stem", None), Tokens | PositionedTokens | TypedTokens)


def ids(model: nn.Module, batch: int, seq: int, seed: int = 0) -> Tensor:
    """Random token ids of the model, int64 [batch, seq]."""
    words = len(model.stem.tokens.weight)  # type: ignore[union-attr, arg-type]
    return torch.randint(words, (batch, seq), generator=torch.Generator().manual_seed(seed))


def same(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many tokens two continuations share before they part."""
    pairs = list(zip(ours, theirs))
    return next((place for place, (a, b) in enumerate(pairs) if a != b), len(pairs))
