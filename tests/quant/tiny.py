"""A small language model that has really learned something in a few seconds, and the text that it learned from."""

from __future__ import annotations

import random

import torch
from torch import Tensor

from modelworks.models import qwen3
from modelworks.nn.transformer import Transformer

WORDS = "the a old red small dog cat bird king sings sees finds eats and then under over near house tree river".split()
ALPHABET = sorted({letter for word in WORDS for letter in word} | set(" .\n"))
CONFIG = qwen3.Config(
    vocab_size=len(ALPHABET), d_model=64, n_layers=2, n_heads=2, n_kv_heads=1, d_head=32, d_ff=128, max_len=128,
    rope_theta=10_000.0,
)  # fmt: skip


def text(words: int, seed: int) -> str:
    """Sentences in which what comes next depends on the last word, with some chance in it."""
    dice = random.Random(seed)
    out, here = [], 0
    for _ in range(words):
        here = (here * 5 + dice.choice((1, 1, 1, 2, 7))) % len(WORDS)
        out.append(WORDS[here] + (".\n" if dice.random() < 0.1 else " "))
    return "".join(out)


def ids(words: str) -> list[int]:
    return [ALPHABET.index(letter) for letter in words]


def rows(count: int, seed: int, length: int = 64) -> Tensor:
    """int64 [count, length + 1] of fresh text."""
    letters = torch.tensor(ids(text(count * (length + 1) // 2, seed)))
    return letters[: count * (length + 1)].view(count, length + 1)


def trained(steps: int = 100) -> Transformer:
    """The model after a few seconds of training."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    model = qwen3.build(CONFIG)
    optimiser = torch.optim.AdamW(model.parameters(), 4e-3)
    data = rows(steps * 8, seed=1)
    for batch in data.split(8):
        loss = model(batch[:, :-1], labels=batch[:, 1:]).losses.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    torch.set_num_threads(threads)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def nats(model: Transformer, held_out: Tensor) -> float:
    """Mean loss of held-out rows."""
    return model(held_out[:, :-1], labels=held_out[:, 1:]).losses.double().mean().item()


@torch.no_grad()
def divergence(before: Transformer, after: Transformer, held_out: Tensor) -> float:
    """Mean KL divergence of the next letter in nats."""
    one, two = (model(held_out[:, :-1]).logits.double().log_softmax(-1) for model in (before, after))
    return (one.exp() * (one - two)).sum(-1).mean().item()
