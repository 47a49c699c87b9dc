"""Intervals against published values, and how often they hold the truth in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.evaluate import intervals


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_equals_newcombe_1998_table(successes, n, low, high):
    interval = intervals.wilson(successes, n)
    assert (interval.low, interval.high) == pytest.approx((low, high), abs=5e-5)


def test_wilson_equals_scipy():
    stats = pytest.importorskip("scipy.stats")
    for successes, n in [(3, 10), (0, 7), (7, 7), (420, 1000)]:
        expected = stats.binomtest(successes, n).proportion_ci(0.9, method="wilson")
        found = intervals.wilson(successes, n, level=0.9)
        assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=40), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_holds_its_value_and_repeats(values, seed):
    interval = intervals.mean(values, seed)
    assert interval == intervals.mean(values, seed)
    assert interval.low - 1e-9 <= interval.value <= interval.high + 1e-9 or len(values) < 6
    assert (min(values) - 1e-9 <= interval.low and interval.high <= max(values) + 1e-9) or set(values) <= {0, 1}
    assert interval.value == pytest.approx(float(np.mean(values)), abs=1e-9)


def coverage(make, truth, repeats=300):
    held = 0
    for number in range(repeats):
        interval = make(np.random.default_rng(number))
        held += interval.low <= truth <= interval.high
    return held / repeats


def test_bootstrap_of_a_skewed_mean_holds_the_truth_about_95_times_in_100(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 400)
    assert 0.90 <= coverage(lambda dice: intervals.mean(dice.exponential(2.0, 120)), 2.0) <= 0.985


def test_bootstrap_of_a_ratio_holds_the_truth(monkeypatch):
    monkeypatch.setattr(intervals, "DRAWS", 400)

    def documents(dice):
        lengths = dice.integers(20, 2000, 100)
        return intervals.ratio(lengths * 1.5 + dice.normal(0, 40, 100), lengths)

    assert 0.90 <= coverage(documents, 1.5) <= 0.985


def test_paired_differences_of_outcomes_hold_the_truth():
    def outcomes(dice):
        before = dice.random(150) < 0.6
        after = np.where(dice.random(150) < 0.2, dice.random(150) < 0.9, before)
        return intervals.paired(after.astype(float), before.astype(float))

    assert 0.92 <= coverage(outcomes, 0.2 * (0.9 - 0.6)) <= 0.99


def test_no_difference_in_a_few_items_is_not_certainty():
    same = intervals.paired([1.0] * 30, [1.0] * 30)
    assert same.value == 0 and same.low < -0.05 and same.high > 0.05
    assert intervals.mean([1.0] * 30).low < 0.9


def test_paired_beats_unpaired_when_items_differ_more_than_models():
    dice = np.random.default_rng(3)
    difficulty = dice.normal(0, 10, 200)
    after, before = difficulty + 1 + dice.normal(0, 0.5, 200), difficulty + dice.normal(0, 0.5, 200)
    interval = intervals.paired(after, before)
    assert 0.8 < interval.low < 1 < interval.high < 1.2


def test_large_samples_agree_with_the_normal_interval():
    values = np.random.default_rng(0).normal(3, 1, 6000)
    interval = intervals.mean(values)
    half = 1.96 / math.sqrt(6000)
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.002)


def test_nothing_to_measure_is_one_sentence():
    for call in (
        lambda: intervals.mean([]),
        lambda: intervals.paired([1.0], []),
        lambda: intervals.ratio([1.0], [0.0]),
    ):
        with pytest.raises(UserError, match="needs"):
            call()
    with pytest.raises(UserError, match="successes"):
        intervals.wilson(3, 2)


def test_format():
    assert f"{intervals.wilson(5, 10):.2f}" == "0.50 [0.24, 0.76]"
