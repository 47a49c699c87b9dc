"""Confidence intervals: of a mean, of a ratio, of a paired difference. Seeded, and closed forms where they exist.

Shares of yes/no outcomes use closed forms, because a bootstrap of "all right" claims certainty: Wilson (1927) for
one share, Bonett and Price (2012, "Adjusted Wald confidence interval for a difference of binomial proportions based
on paired data") for a paired difference. Everything else is a percentile bootstrap over items (Efron 1979).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from modelworks.base.errors import UserError

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and the interval that holds the true one in a share `level` of repetitions, over `n` items."""

    value: float
    low: float
    high: float
    n: int
    level: float = LEVEL

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for JSON."""
        return asdict(self)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3f"
        return f"{self.value:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


def mean(values: Sequence[float], seed: int = 0, level: float = LEVEL) -> Interval:
    """Interval of a mean: Wilson's where all values are 0 or 1, a bootstrap over items otherwise.

    Raises UserError where there are no values.
    """
    numbers = _numbers(values)
    if np.isin(numbers, (0.0, 1.0)).all():
        return wilson(int(numbers.sum()), len(numbers), level)
    return ratio(numbers, np.ones(len(numbers)), seed, level)


def wilson(successes: int, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share. Raises UserError for no trials or more successes than trials."""
    if not 0 <= successes <= n or n == 0:
        raise UserError(f"a share needs at least one trial and no more successes than trials (got {successes} of {n}).")
    z, share = _z(level), successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (share * (1 - share) / n + z * z / (4 * n * n)) ** 0.5
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return Interval(share, low, high, n, level)


def ratio(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, seed: int = 0, level: float = LEVEL
) -> Interval:
    """Interval of sum(above) / sum(below), resampling items (bits per byte: bits and bytes of each document).

    Raises UserError where there are no items or `below` sums to nothing.
    """
    top, bottom = _numbers(above), _numbers(below)
    if len(top) != len(bottom) or bottom.sum() <= 0:
        raise UserError("a ratio needs as many items above as below, and something below.")
    counts = _resampled(len(top), seed)
    sums = counts @ bottom
    draws = (counts @ top)[sums > 0] / sums[sums > 0]
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(top.sum() / bottom.sum()), float(low), float(high), len(top), level)


def paired(after: Sequence[float], before: Sequence[float], seed: int = 0, level: float = LEVEL) -> Interval:
    """Interval of mean(after - before) over the same items: Bonett-Price for 0/1 values, a bootstrap otherwise.

    Raises UserError where there are no items or the two lists differ in length.
    """
    a, b = _numbers(after), _numbers(before)
    if len(a) != len(b):
        raise UserError(f"a paired difference needs the same items twice (got {len(a)} and {len(b)}).")
    if not (np.isin(a, (0.0, 1.0)).all() and np.isin(b, (0.0, 1.0)).all()):
        return ratio(a - b, np.ones(len(a)), seed, level)
    n = len(a)
    won, lost = (np.sum(a > b) + 1) / (n + 2), (np.sum(a < b) + 1) / (n + 2)
    half = _z(level) * ((won + lost - (won - lost) ** 2) / (n + 2)) ** 0.5
    low, high = max(-1.0, won - lost - half), min(1.0, won - lost + half)
    return Interval(float((a - b).mean()), float(low), float(high), n, level)


def _numbers(values: Sequence[float] | np.ndarray) -> np.ndarray:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise UserError("an interval needs at least one item.")
    return numbers


def _z(level: float) -> float:
    return NormalDist().inv_cdf((1 + level) / 2)


def _resampled(n: int, seed: int) -> np.ndarray:
    """How often each of `n` items is drawn, in each of `DRAWS` resamples: float64 [DRAWS, n]."""
    dice = np.random.default_rng(seed)
    if n <= 5000:
        return dice.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64)
    return dice.poisson(1.0, size=(DRAWS, n)).astype(np.float64)  # the same to within 1/sqrt(n), and faster
