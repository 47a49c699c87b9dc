"""Bits of held-out documents under any model that gives logits: every token once, each with what stands before it.

Imports nothing but torch and numpy, so that each side scores itself with the same lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100


def windows(document: np.ndarray, eos: int, size: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(tokens, labels), int64 [T <= size], of a document that ends with `eos`; its first token follows an `eos`.

    Windows overlap by half, and what an earlier one predicted is no label again: so all but the first `size` tokens
    are predicted from at least half a window.
    """
    before = np.concatenate([[eos], document[:-1]]).astype(np.int64)
    start = done = 0
    while done < len(document):
        end = min(start + size, len(document))
        labels = document[start:end].astype(np.int64)
        labels[: done - start] = IGNORED
        yield before[start:end], labels
        done, start = end, end - size // 2


@torch.no_grad()
def nats(logits: Callable[[Tensor], Tensor], documents: Iterable[np.ndarray], eos: int, size: int) -> float:
    """Sum of the cross-entropies of all tokens; `logits` takes int64 [B, T] to [B, T, V]."""
    pieces = sorted((w for document in documents for w in windows(document, eos, size)), key=lambda w: len(w[0]))
    total = 0.0
    for start in range(0, len(pieces), 16):
        some = pieces[start : start + 16]
        longest = max(len(tokens) for tokens, _ in some)
        tokens, labels = _padded([t for t, _ in some], longest, 0), _padded([y for _, y in some], longest, IGNORED)
        out = logits(tokens).float().flatten(0, 1)
        total += F.cross_entropy(out, labels.flatten(), ignore_index=IGNORED, reduction="sum").item()
    return total


def bits_per_byte(total: float, size: int) -> float:
    """From nats and the UTF-8 bytes of the text."""
    return total / math.log(2) / size


def _padded(rows: Sequence[np.ndarray], length: int, fill: int) -> Tensor:
    return torch.from_numpy(np.stack([np.pad(row, (0, length - len(row)), constant_values=fill) for row in rows]))
