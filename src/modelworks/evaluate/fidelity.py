"""How near a changed model is to the one it was made of: on the same text, token by token. V words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from modelworks.base import log
from modelworks.data.packing import IGNORED

from .intervals import Interval, ratio
from .suites.perplexity import windows

LOGITS = 1 << 25
"""Numbers in the logits of one pass (128 MB in float32)."""

PROTOCOL = """Every token of every held-out document, its end mark included, is predicted once by both models from the
same context (windows as in the suite perplexity). agreement: share of tokens whose likeliest next token is the same.
kl: mean Kullback-Leibler divergence of the changed model's distribution from the original's, in nats a token.
bits_per_byte as in the suite perplexity. Intervals are 95 %, percentile bootstrap over documents; that of a difference
resamples both models' documents together."""


@dataclass(frozen=True, slots=True)
class Fidelity:
    """Bits per byte before and after, the paired difference, and how far the distributions are apart."""

    before: Interval
    after: Interval
    difference: Interval
    perplexity_before: float
    perplexity_after: float
    agreement: Interval
    kl: Interval

    def metrics(self) -> dict[str, Interval | float]:
        """By the names that are shown."""
        return {
            "bits_per_byte_before": self.before,
            "bits_per_byte_after": self.after,
            "bits_per_byte_difference": self.difference,
            "perplexity_before": self.perplexity_before,
            "perplexity_after": self.perplexity_after,
            "agreement": self.agreement,
            "kl": self.kl,
        }


@torch.no_grad()
def compare(
    before: nn.Module,
    after: nn.Module,
    ids: Sequence[Sequence[int]],
    sizes: Sequence[int],
    eos: int,
    max_len: int,
    words: int,
    seed: int = 0,
) -> Fidelity:
    """Run both over documents (`ids`, and `sizes` in bytes). Both are in evaluation mode; `words` is V."""
    sums = np.zeros((4, len(ids)))  # nats before, nats after, same likeliest, divergence
    pieces = sorted(windows(ids, eos, max_len), key=lambda piece: (-len(piece[1]), piece[0]))
    rows = max(1, min(16, LOGITS // (max_len * words)))
    with log.progress("comparing on held-out text", len(pieces), "windows") as bar:
        for start in range(0, len(pieces), rows):
            group = pieces[start : start + rows]
            width = len(group[0][1])
            tokens = np.full((len(group), width), eos, dtype=np.int64)
            labels = np.full((len(group), width), IGNORED, dtype=np.int64)
            for row, (_, window, targets) in enumerate(group):
                tokens[row, : len(window)], labels[row, : len(window)] = window, targets
            counted = torch.from_numpy(labels != IGNORED)
            one, two = (_chances(model, torch.from_numpy(tokens), counted) for model in (before, after))
            wanted = torch.from_numpy(labels)[counted][:, None]
            found = torch.stack(
                [
                    -one.gather(1, wanted)[:, 0],
                    -two.gather(1, wanted)[:, 0],
                    (one.argmax(1) == two.argmax(1)).float(),
                    (one.exp() * (one - two)).sum(1),
                ]
            )
            owners = np.array([document for document, _, _ in group])[np.nonzero(counted.numpy())[0]]
            for line, values in zip(sums, found.double().numpy(), strict=True):
                np.add.at(line, owners, values)
            bar.advance(len(group))
    return _summed(sums, np.array([len(document) + 1.0 for document in ids]), np.array(sizes, dtype=np.float64), seed)


def _chances(model: nn.Module, tokens: Tensor, counted: Tensor) -> Tensor:
    """Log-probabilities at the counted positions, float32 [N, V] on the CPU."""
    device = next(model.parameters()).device
    logits = model(tokens.to(device)).logits
    return logits[counted.to(device)].float().log_softmax(-1).cpu()


def _summed(sums: np.ndarray, counts: np.ndarray, sizes: np.ndarray, seed: int) -> Fidelity:
    bits = sums[:2] / np.log(2)
    return Fidelity(
        before=ratio(bits[0], sizes, seed),
        after=ratio(bits[1], sizes, seed),
        difference=ratio(bits[1] - bits[0], sizes, seed),
        perplexity_before=float(np.exp(min(sums[0].sum() / counts.sum(), 700.0))),
        perplexity_after=float(np.exp(min(sums[1].sum() / counts.sum(), 700.0))),
        agreement=ratio(sums[2], counts, seed),
        kl=ratio(sums[3], counts, seed),
    )
