"""The n-gram model against a plain-dictionary Kneser-Ney, and that its probabilities sum to one."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.evaluate.ngram import NGram

words = st.lists(st.integers(0, 4), min_size=1, max_size=80)


class Naive:
    """Modified Kneser-Ney as written in Chen and Goodman, over dictionaries of tuples."""

    def __init__(self, order, vocab_size, stream):
        self.order, self.vocab_size = min(order, len(stream)), vocab_size
        grams = [
            Counter(tuple(stream[i : i + k]) for i in range(len(stream) - k + 1)) for k in range(1, self.order + 2)
        ]
        self.counts = []
        for k in range(1, self.order + 1):
            if k == self.order:
                self.counts.append(dict(grams[k - 1]))
            else:
                left = {gram: set() for gram in grams[k - 1]}
                for gram in grams[k]:
                    left[gram[1:]].add(gram[0])
                self.counts.append({gram: len(found) for gram, found in left.items()})
        self.discounts = [self.discount(counts) for counts in self.counts]
        self.totals = [defaultdict(int) for _ in self.counts]
        self.discounted = [defaultdict(float) for _ in self.counts]
        for k, counts in enumerate(self.counts):
            for gram, count in counts.items():
                self.totals[k][gram[:-1]] += count
                self.discounted[k][gram[:-1]] += self.discounts[k][min(count, 3)]

    @staticmethod
    def discount(counts):
        n = [sum(count == c for count in counts.values()) for c in range(5)]
        if 0 in n[1:]:
            return [0, 0.5, 0.75, 0.75]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [0, *(min(max(d, 0.05), c) for c, d in enumerate(raw, 1))]

    def p(self, history, word, k=None):
        k = self.order if k is None else k
        if k == 0:
            return 1 / self.vocab_size
        context = tuple(history[len(history) - k + 1 :]) if k > 1 else ()
        lower = self.p(history, word, k - 1)
        total = self.totals[k - 1].get(context, 0)
        if len(history) < k - 1 or total == 0:
            return lower
        count = self.counts[k - 1].get((*context, word), 0)
        return (count - self.discounts[k - 1][min(count, 3)]) / total + self.discounted[k - 1][context] / total * lower


@given(words, words, st.integers(1, 4))
@settings(max_examples=80, deadline=None)
def test_equals_the_plain_implementation(train, heldout, order):
    bits = NGram(order, 5).fit(np.array(train)).bits(np.array(heldout))
    naive = Naive(order, 5, train)
    expected = [-math.log2(naive.p(heldout[:i], word)) for i, word in enumerate(heldout)]
    assert bits.tolist() == pytest.approx(expected, abs=1e-9)


def test_equals_the_plain_implementation_on_text_with_all_discounts():
    text = (b"the cat sat on the mat and the dog sat on the cat; then that hat sat on the rat. " * 3 + b"a new day") * 2
    held = b"the hat and the dog sat on that day, the end"
    bits = NGram(4, 256).fit(np.frombuffer(text, np.uint8)).bits(np.frombuffer(held, np.uint8))
    naive = Naive(4, 256, text)
    assert bits.tolist() == pytest.approx([-math.log2(naive.p(held[:i], w)) for i, w in enumerate(held)], abs=1e-9)


@given(words, st.lists(st.integers(0, 4), max_size=6), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_probabilities_sum_to_one_after_any_history(train, history, order):
    model = NGram(order, 5).fit(np.array(train))
    total = sum(2 ** -model.bits(np.array([*history, word]))[-1] for word in range(5))
    assert total == pytest.approx(1.0, abs=1e-9)


def test_vocabularies_too_large_for_packed_keys():
    """Five words of 18 bits do not fit 64 bits; numbering contexts keeps them apart."""
    stream = np.random.default_rng(0).integers(0, 2**18, 4000)
    stream = np.concatenate([stream, stream])
    model = NGram(5, 2**18).fit(stream)
    assert model.bits(stream)[-3000:].mean() < 2.5
    assert model.bits(np.random.default_rng(1).integers(0, 2**18, 1000)).mean() > 17


def test_longer_contexts_help_and_unseen_text_never_costs_infinity():
    text = np.frombuffer(b"colourless green ideas sleep furiously. " * 50, np.uint8)
    costs = [NGram(order, 256).fit(text[:1000]).bits(text[1000:]).mean() for order in (1, 2, 3)]
    assert costs[0] > costs[1] > costs[2]
    assert np.isfinite(NGram(6, 256).fit(text).bits(np.arange(256))).all()


def test_bad_input_is_one_sentence():
    for call in (
        lambda: NGram(0, 5),
        lambda: NGram(2, 5).fit(np.array([], dtype=int)),
        lambda: NGram(2, 5).fit(np.array([5])),
    ):
        with pytest.raises(UserError):
            call()


def test_a_toy_by_hand():
    """The stream 0 1 0 1 0 2 and bigrams; so few counts that the discounts are the constants 0.5 and 0.75.

    Single words: each has one left neighbour, so each gets (1 - 0.5) / 3 + (3 * 0.5 / 3) / 3 = 1/3. After 0 came
    1 twice and 2 once: 1.25 of 3 are taken away, so 5/12 go to the single words, 5/36 to each of them.
    """
    model = NGram(2, 3).fit(np.array([0, 1, 0, 1, 0, 2]))
    found = [2 ** -model.bits(np.array([0, word]))[1] for word in range(3)]
    assert found == pytest.approx([5 / 36, 1.25 / 3 + 5 / 36, 0.5 / 3 + 5 / 36])
