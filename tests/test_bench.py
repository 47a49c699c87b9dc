"""The measuring scripts measure what they say, tried at sizes that take a second and mean nothing."""

from __future__ import annotations

import importlib
import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def bench() -> dict[str, ModuleType]:
    places = [str(ROOT / "bench"), str(ROOT / "bench" / "train")]
    sys.path[:0] = places
    try:
        return {name: importlib.import_module(name) for name in ("record", "char_baseline", "char_lm")}
    finally:
        for place in places:
            sys.path.remove(place)


@pytest.mark.parametrize("length", [2, 64, 65, 66, 200])
def test_windows_predict_every_character_but_the_first_once(bench: dict[str, ModuleType], length: int) -> None:
    pieces = bench["char_lm"].windows(list(range(length)), 64)
    assert [int(label) for piece in pieces for label in piece[1:]] == list(range(1, length))
    assert all(len(piece) <= 65 for piece in pieces)


def test_the_score_is_the_mean_cross_entropy(bench: dict[str, ModuleType]) -> None:
    ids = torch.randint(7, (150,), generator=torch.Generator().manual_seed(1)).tolist()

    def logits(tokens: torch.Tensor) -> torch.Tensor:  # sure at odds e : 1 that a character comes again
        return torch.nn.functional.one_hot(tokens, 7).float()

    again = sum(a == b for a, b in itertools.pairwise(ids))
    expected = math.log(math.e + 6) - again / (len(ids) - 1)
    assert bench["char_lm"].loss(logits, ids) == pytest.approx(expected, rel=1e-6)


def test_the_plain_model_is_the_one_that_is_described(bench: dict[str, ModuleType]) -> None:
    plain = bench["char_baseline"]
    model = plain.CharGPT(65)
    matrices = 4 * 12 * 128 * 128 + 65 * 128 + 64 * 128
    assert sum(p.numel() for p in model.parameters()) == matrices + (4 * 2 + 1) * 128
    rates = [plain.rate(step, 2000) for step in range(2000)]
    assert rates[0] == pytest.approx(1e-5) and max(rates) == pytest.approx(1e-3)
    assert rates.index(max(rates)) in (99, 100) and rates[-1] == pytest.approx(1e-4, rel=1e-3)
    tokens = torch.randint(65, (2, 20))
    changed = tokens.clone()
    changed[:, 12:] = 0
    assert torch.allclose(model(tokens)[:, :12], model(changed)[:, :12], atol=1e-6), "it sees what is to come"


def test_the_plain_script_trains_saves_and_is_scored(bench: dict[str, ModuleType], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcabcabd" * 60)
    script = [sys.executable, str(ROOT / "bench" / "train" / "char_baseline.py")]
    subprocess.run(
        [*script, str(tmp_path / "text.txt"), str(tmp_path / "out"), "--steps", "30"], check=True, timeout=90
    )
    assert bench["char_lm"].score_plain(tmp_path / "out", "abcabcabd" * 10) < math.log(4)


def test_a_result_is_kept_and_its_row_stands_in_its_table(
    bench: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = bench["record"]
    monkeypatch.setattr(record, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(record, "PAGE", tmp_path / "page.md")
    record.PAGE.write_text("<!-- speed -->\n| a |\n|---|\n<!-- end of speed -->\n")
    kept = json.loads(record.write("speed", "how", [{"seconds": 1.5}], {"seconds": 1.5}).read_text())
    assert kept["machine"]["cores"] and kept["commit"] and kept["runs"] == [{"seconds": 1.5}]
    record.publish("speed", record.row([record.spread([1.0, 3.0, 2.0])]))
    assert record.PAGE.read_text() == "<!-- speed -->\n| a |\n|---|\n| 2.00 (1.00 - 3.00) |\n<!-- end of speed -->\n"
    with pytest.raises(SystemExit):
        record.publish("nothing", "")


def test_every_table_of_the_page_has_its_script() -> None:
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    for marker in ("startup", "char_lm"):
        assert f"<!-- {marker} -->" in page and f"<!-- end of {marker} -->" in page
