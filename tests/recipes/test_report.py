"""The report and the card: complete, self-contained, right in their sums, safe against what documents hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import yaml

from modelworks.base.errors import DamagedError, UserError
from modelworks.recipes import card, report
from modelworks.recipes.report_parts import draw, facts, learning, numbers, page, plots

from . import example_run

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Reader(HTMLParser):
    """Collects tags, attributes and text, and checks that every element is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example_run.build(tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def written(run: Path) -> str:
    return report.write(run, run.parent).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def reader(written: str) -> Reader:
    reader = Reader()
    reader.feed(written)
    assert reader.open == []
    return reader


def test_every_section_is_there(reader: Reader) -> None:
    identifiers = [value for name, value in reader.attributes if name == "id"]
    wanted = "summary data training scores robustness samples lineage cost protocol".split()
    assert [i for i in identifiers if i in wanted] == wanted
    assert len(identifiers) == len(set(identifiers)), "two elements with one id"
    assert set(re.findall(r'href="#([a-z]+)"', "".join(f'{n}="{v}"' for n, v in reader.attributes))) >= set(wanted)


def test_nothing_is_loaded_and_nothing_runs(reader: Reader, written: str) -> None:
    assert not {"script", "img", "iframe", "link", "object", "base", "form"} & set(reader.tags)
    for name, value in reader.attributes:
        assert not name.startswith("on")
        if name in ("href", "src", "xlink:href"):
            assert value and value.startswith("#")
    assert "url(http" not in written and "@import" not in written
    assert "default-src 'none'" in written


def test_what_documents_hold_is_shown_and_does_nothing(reader: Reader) -> None:
    assert example_run.HOSTILE in reader.text


def test_samples_show_kind_verdict_and_source_and_leave_attacks_out(reader: Reader) -> None:
    assert "So it is." in reader.text and "os.path.split" in reader.text and "not correct" in reader.text
    assert "Hidden." not in reader.text


def test_numbers_of_the_run_stand_in_it(reader: Reader) -> None:
    text = " ".join(reader.text.split())
    for part in ("9,210", "10,300", "too short 700", "1.570 [1.550, 1.590]", "xz -9", "31,", "6 min 27 s", "1.4 GB"):
        assert part in text, part
    assert "do not balance" not in text


def test_a_ledger_that_does_not_balance_is_said(tmp_path: Path) -> None:
    run = example_run.build(tmp_path)
    ledger = json.loads((run / "pages" / "ledger.json").read_text())
    ledger["steps"][0]["kept"]["documents"] -= 1
    example_run.put(run / "pages" / "ledger.json", ledger)
    assert "do not balance" in report.text(facts.read(run))


def test_colours_are_variables_so_that_dark_pages_work(written: str) -> None:
    drawings = re.findall(r"(?s)<svg.*?</svg>", written)
    assert len(drawings) >= 10
    for drawing in drawings:
        assert set(re.findall(r"#[0-9a-fA-F]{6}\b", drawing)) <= {"#000000", "#ffffff"}
        assert "var(--ink)" in drawing


def test_the_same_run_gives_the_same_report(run: Path, written: str) -> None:
    assert report.text(facts.read(run)) == written


def test_makers_stand_before_users_and_the_graph_is_theirs(run: Path) -> None:
    read = facts.read(run)
    names = [stage.name for stage in read.stages]
    assert names == ["pages", "corpus", "tokens", "base", "chat", "aligned", "hardened", "scores"]
    assert {s.name for s in read.sources(read.find("chat"))} == {"corpus", "tokens", "base"}
    assert [s.name for s in read.lineage(read.find("base"))] == ["pages", "corpus", "tokens", "base"]
    with pytest.raises(UserError, match="no finished stage"):
        read.find("bass")


def test_a_bare_artefact_is_enough(tmp_path: Path) -> None:
    example_run.put(tmp_path / "run" / "only-00000000" / "artefact.json", {"verb": "train", "stage": "only"})
    example_run.put(tmp_path / "run" / "only-00000000" / "metrics.jsonl", [{"step": 1, "loss": None}, {"step": 2}])
    text = report.write(tmp_path / "run", tmp_path / "out.html").read_text()
    assert "only" in text


def test_unreadable_lines_are_counted_and_broken_json_is_an_error(tmp_path: Path) -> None:
    run = example_run.build(tmp_path)
    with open(run / "base" / "metrics.jsonl", "a") as file:
        file.write('{"step": 310, "lo')
    assert "1 lines of metrics" in report.text(facts.read(run))
    (run / "scores" / "scores.json").write_text("{")
    with pytest.raises(DamagedError, match=r"scores\.json"):
        facts.read(run)


def test_no_run_and_an_empty_run_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run"):
        facts.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="no finished stage"):
        facts.read(tmp_path)


def test_the_gap_is_that_of_the_curves_and_the_best_step_is_marked(tmp_path: Path) -> None:
    """A run that overfits from step 600 on, by hand: the gap is read off the same numbers with NumPy."""
    run = example_run.build(tmp_path)
    train = [(step, 2.0 * 0.998**step + 0.5) for step in range(10, 1001, 10)]
    validation = [(step, 2.0 * 0.998**step + 0.6 + max(0, step - 600) * 1e-3) for step in range(100, 1001, 100)]
    records: list[dict[str, object]] = [{"step": step, "loss": loss} for step, loss in train]
    records += [{"step": step, "validation_loss": loss} for step, loss in validation]
    records += [{"step": step, "sample": "sample_1", "prompt": "Now", "text": f"<i>{step}</i>"} for step in (100, 1000)]
    example_run.put(run / "base" / "metrics.jsonl", records)
    found = learning.gap(train, validation)
    assert found is not None and found.best == min(validation, key=lambda point: point[1])
    for (step, gap), (_, loss) in zip(found.points, validation, strict=True):
        seen = [value for at, value in train if step - 30 < at <= step]
        assert len(seen) == 3 and gap == pytest.approx(loss - np.mean(seen))
    text = report.text(facts.read(run))
    best = f"best {found.best[1]:.3f} at step {found.best[0]}"
    assert best in text and f"has risen by {found.rise:.3f}" in text and "by heart" in text and "(patience)" in text
    assert "&lt;i&gt;1000&lt;/i&gt;" in text


@pytest.mark.parametrize(
    ("validation", "word"),
    [
        ([2.0, 1.6, 1.3, 1.1], "still falling"),
        ([2.0, 1.2, 1.0, 1.0], "levelled off"),
        ([2.0, 1.0, 1.2, 1.3], "by heart"),
        ([1.0], "evaluated once"),
    ],
)
def test_what_the_curves_mean_in_words(validation: list[float], word: str) -> None:
    points = [(100.0 * (n + 1), value) for n, value in enumerate(validation)]
    found = learning.gap([(step, 0.95) for step, _ in points], points)
    assert found is not None and word in " ".join(learning.meaning(found)).lower()
    assert ("were kept" in " ".join(learning.meaning(found, stopped=True))) == (word == "by heart")


def test_energy_and_money_stand_with_what_they_rest_on(tmp_path: Path) -> None:
    run = example_run.build(tmp_path)
    for name, energy in (("base", 12.0), ("chat", 3.5)):
        path = run / name / "artefact.json"
        cost = {"energy_wh": energy, "energy_from": "a counter", "money": energy / 100, "money_from": "a price"}
        example_run.put(path, json.loads(path.read_text()) | {"cost": cost})
    reader = Reader()
    reader.feed(report.text(facts.read(run)))
    assert "15.5" in reader.text and "0.15" in reader.text and "Energy: a counter. Money: a price." in reader.text


@pytest.mark.parametrize("low, high", [(0, 1), (1.57, 4.6), (-0.03, 1.03), (3e-9, 4e-9), (10, 365), (0, 1.2e6), (2, 2)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = draw.ticks(low, high)
    assert 1 <= len(found) <= 12 and all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    texts = [draw.words(tick, found[1] - found[0] if len(found) > 1 else 0) for tick in found]
    assert len(set(texts)) == len(texts)
    if len(found) > 1:
        assert all(float(text.replace(",", "")) == pytest.approx(tick, rel=0.02) for text, tick in zip(texts, found))


def test_a_curve_is_drawn_where_its_numbers_are() -> None:
    """Pixels of a line, against the scale of the ticks beside it."""
    svg = plots.lines("x", {"a": [(0.0, 10.0, None, None), (4.0, 30.0, None, None)]}, "x", "y")
    path = next(p for p in re.findall(r'<path d="([^"]*)" style="stroke: var\(--c1\)', svg))
    (x0, y0), (x1, y1) = [tuple(map(float, pair.split())) for pair in path[1:].split("L")]
    where = {
        text: (float(x), float(y)) for x, y, text in re.findall(r'<text x="([\d.]+)" y="([\d.]+)"[^>]*>([\d.]+)<', svg)
    }
    assert x1 > x0 and y1 < y0, "to the right and up: pixels count downwards"
    assert x0 == pytest.approx(where["0"][0], abs=0.2) and x1 == pytest.approx(where["4"][0], abs=0.2)
    assert y0 == pytest.approx(where["10"][1] - 4, abs=0.2) and y1 == pytest.approx(where["30"][1] - 4, abs=0.2)


def test_the_report_needs_no_plotting_library() -> None:
    code = "import sys, modelworks.recipes.report; print('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def test_suites_in_either_shape() -> None:
    body = {"metrics": {"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}, "version": 2}
    flat = numbers.suites({"quiz": body})[0]
    nested = numbers.suites({"base": {"quiz": body}, "chat": {"quiz": body}})[0]
    assert flat.rows == [{"accuracy": {"value": 0.5, "low": 0.4, "high": 0.6}}]
    assert [row["model"] for row in nested.rows] == ["base", "chat"]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (9210, "9,210"),
        (0.0, "0.000"),
        (0.00001, "1.0e-05"),
        (123456.0, "123,456"),
        (None, "\u2013"),
        (float("nan"), "nan"),
    ],
)
def test_numbers_for_people(value: float, words: str) -> None:
    assert numbers.number(value) == words


def test_text_is_escaped_once() -> None:
    assert page.tag("p", "<b>", page.tag("i", "&")) == "<p>&lt;b&gt;<i>&amp;</i></p>"


def test_the_card_is_a_card(run: Path) -> None:
    read = facts.read(run)
    text = card.text(read, read.find("hardened"), licence="psf-2.0")
    _, front, body = text.split("---\n", 2)
    meta = yaml.safe_load(front)
    assert meta["library_name"] == "transformers" and meta["license"] == "psf-2.0"
    metrics = {m["type"]: m["value"] for r in meta["model-index"][0]["results"] for m in r["metrics"]}
    assert metrics["right_passage"] == pytest.approx(0.9)
    for part in ("## Data", "train adversarial", "| hardened |", "## Limits", "320"):
        assert part in body
    assert "scores" not in [line.split("|")[1].strip() for line in body.splitlines() if line.startswith("| ")]


def test_the_card_of_a_model_that_is_just_made(run: Path, tmp_path: Path) -> None:
    """While its own artefact is not written yet, nor any evaluation."""
    read = facts.read(run)
    young = facts.stage(
        "new", tmp_path, {"verb": "train", "settings": {"objective": "chat"}, "input_folders": {"model": ["base"]}}
    )
    text = card.text(read, young)
    assert "## Scores" not in text and "train causal_lm" in text and "train chat" in text
    assert text == card.young(_work(run), {**young.artefact, "stage": "new"}).replace("`00000000`", "")
    alone = card.young(tmp_path / "x" / "y", {"verb": "train", "stage": "y"})
    assert "# x: y" in alone


def _work(run: Path) -> Path:
    """A folder in the run that is being filled: hidden until it is complete."""
    folder = run / ".new-00000000"
    folder.mkdir()
    return folder
