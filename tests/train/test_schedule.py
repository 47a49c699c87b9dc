"""Schedules at points where their value is known, and what holds for all of them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelworks.train.schedule import factor, inertia

KINDS = ["wsd", "cosine", "linear", "constant"]


@pytest.mark.parametrize(
    ("kind", "progress", "expected"),
    [
        ("wsd", 0.0, 1.0), ("wsd", 0.6, 1.0), ("wsd", 0.8, 0.5), ("wsd", 0.9, 0.25), ("wsd", 1.0, 0.0),
        ("linear", 0.0, 1.0), ("linear", 0.25, 0.75), ("linear", 1.0, 0.0),
        ("cosine", 0.0, 1.0), ("cosine", 0.5, 0.55), ("cosine", 1.0, 0.1),
        ("cosine", 1 / 3, 0.1 + 0.9 * 0.75), ("constant", 0.99, 1.0),
    ],
)  # fmt: skip
def test_closed_forms(kind: str, progress: float, expected: float) -> None:
    assert factor(kind, 1000, progress, 10, 0.4) == pytest.approx(expected, abs=1e-12)


@given(kind=st.sampled_from(KINDS), step=st.integers(0, 10**6), progress=st.floats(0, 1.5), warm=st.integers(0, 1000))
def test_bounds(kind: str, step: int, progress: float, warm: int) -> None:
    value = factor(kind, step, progress, warm, 0.4)
    assert math.isfinite(value) and 0 <= value <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_warm_up_is_linear_and_the_rest_never_rises(kind: str) -> None:
    steps, warm = 200, 20
    course = [factor(kind, n, n / steps, warm, 0.4) / factor(kind, n, n / steps, 0, 0.4) for n in range(steps)]
    assert course[:warm] == pytest.approx([(n + 1) / warm for n in range(warm)])
    after = [factor(kind, n, n / steps, warm, 0.4) for n in range(warm, steps)]
    assert all(a >= b for a, b in zip(after, after[1:]))  # noqa: RUF007


def test_momentum_rises_from_the_first_step_and_stays() -> None:
    assert [round(inertia(step), 6) for step in (0, 150, 300, 600, 10**6)] == [0.85, 0.875, 0.9, 0.95, 0.95]
