"""What the benchmarks beside peers rest on: the score of held-out text, the work a token takes, a watched process."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench" / "train"))
import heldout
import texts
import throughput
import watched

EOS, SIZE = 9, 8


@pytest.mark.parametrize("length", [1, 7, 8, 9, 12, 13, 40])
def test_every_token_is_predicted_once_from_what_stands_before_it(length: int) -> None:
    document = np.append(np.arange(100, 100 + length - 1), EOS)
    text = np.append(EOS, document)
    labels: list[int] = []
    for tokens, wanted in heldout.windows(document, EOS, SIZE):
        places = np.flatnonzero(wanted != heldout.IGNORED)
        first = len(labels)
        assert wanted[places].tolist() == document[first : first + len(places)].tolist()
        assert tokens[places].tolist() == text[first : first + len(places)].tolist()
        assert first == 0 or places[0] >= SIZE // 2  # half a window of context
        labels += wanted[places].tolist()
    assert labels == document.tolist()


def test_nats_are_those_of_each_token_after_the_one_before_it() -> None:
    """A bigram model: its scores do not depend on windows, so a plain sum over the text is the oracle."""
    torch.manual_seed(0)
    table = torch.randn(20, 20)
    rng = np.random.default_rng(0)
    documents = [np.append(rng.integers(0, 9, n), EOS) for n in (0, 3, 8, 30, 31)]
    found = heldout.nats(lambda tokens: table[tokens], documents, EOS, SIZE)
    logs = table.log_softmax(-1)
    expected = -sum(
        float(logs[a, b]) for d in documents for a, b in zip([EOS, *d[:-1].tolist()], d.tolist(), strict=True)
    )
    assert found == pytest.approx(expected, rel=1e-5)
    assert heldout.bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)


def test_work_a_token_as_nanogpt_counts_it() -> None:
    """GPT-2: nanoGPT counts 123.65M weights without positions at a vocabulary of 50,304."""
    shape = throughput.SHAPES["gpt2"]
    weights = (throughput.flops(shape) - 12 * 12 * 768 * 512) / 6
    assert weights == pytest.approx(50304 * 768 + 12 * (12 * 768**2 + 13 * 768) + 2 * 768)
    assert 123.6e6 < weights < 123.8e6


def test_a_child_counts_into_the_memory_and_a_failure_is_told(tmp_path: Path) -> None:
    child = "held = b'1' * 60_000_000; import time; time.sleep(1)"
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    seen = watched.run([sys.executable, "-c", parent], tmp_path / "log", {}, 60)
    assert seen.children == 1
    assert seen.peak_bytes > 60e6 > seen.peak_alone_bytes
    with pytest.raises(SystemExit, match="no such luck"):
        watched.run([sys.executable, "-c", "raise SystemExit('no such luck')"], tmp_path / "log", {}, 60)


def test_brown_reads_like_text() -> None:
    raw = "\n\n\tThe/at jury/nn said/vbd ,/, ``/`` it/pps did/dod n't/* ''/'' ;/. ;/.\n\n\n\tYes/rb ./.\n"
    assert texts.untagged(raw) == 'The jury said, "it didn\'t";\nYes.'
