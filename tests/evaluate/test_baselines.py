"""Baselines: the cost of each document, against entropy in closed form, the xz command and a plain sum."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest

from modelworks.base.errors import UserError
from modelworks.evaluate import baselines
from modelworks.evaluate.ngram import NGram

TRAIN = [f"def function_{i}(argument): return argument + {i}" for i in range(200)]
HELD = ["def function_777(argument): return argument + 9", "中文", ""]


def test_each_document_pays_for_its_bytes_and_its_end():
    bits = baselines.byte_ngram(TRAIN, HELD, order=3)
    stream = b"\0" + b"".join(text.encode() + b"\0" for text in HELD)
    train = b"\0" + b"".join(text.encode() + b"\0" for text in TRAIN)
    model = NGram(3, 256).fit(np.frombuffer(train, np.uint8))
    all_bits = model.bits(np.frombuffer(stream, np.uint8))
    assert len(bits) == 3
    assert bits.sum() == pytest.approx(all_bits[1:].sum())
    assert bits[0] == pytest.approx(all_bits[1 : 2 + len(HELD[0])].sum())
    assert bits[2] == pytest.approx(all_bits[-1])


def test_unigram_of_a_fair_die_is_its_entropy():
    dice = np.random.default_rng(0)
    train = [dice.integers(1, 9, 5000) for _ in range(4)]
    bits = baselines.word_ngram(train, [dice.integers(1, 9, 5000)], 9, order=1, end=0)
    assert bits[0] / 5000 == pytest.approx(3.0, abs=0.02)


def test_xz_equals_the_command(tmp_path):
    command = shutil.which("xz")
    if not command:
        pytest.skip("needs the xz command")
    text = "\n".join(TRAIN)
    packed = subprocess.run([command, "-9e", "-c"], input=text.encode() + b"\0", capture_output=True, check=True).stdout
    assert baselines.xz([text]) == pytest.approx(8 * len(packed), rel=0.01)


def test_xz_profits_from_the_training_text():
    assert 0 < baselines.xz_after(TRAIN, HELD) < baselines.xz(HELD)


def test_nothing_to_count_is_one_sentence():
    with pytest.raises(UserError, match="one of the two is empty"):
        baselines.byte_ngram([], HELD)
