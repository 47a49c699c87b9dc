"""The report and the card: complete, self-contained, right in their sums, safe against what documents hold."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml

from modelworks.base.errors import DamagedError, UserError
from modelworks.recipes import card, report
from modelworks.recipes.report_parts import facts, learning, numbers, page, plots

from . import example_run

SVG = "{http://www.w3.org/2000/svg}"
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


@pytest.fixture
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without matplotlib; also ten times as fast."""
    monkeypatch.setattr("modelworks.recipes.report_parts.plots.available", lambda: False)


@pytest.mark.usefixtures("no_plots")
def test_a_ledger_that_does_not_balance_is_said(tmp_path: Path) -> None:
    run = example_run.build(tmp_path)
    ledger = json.loads((run / "pages" / "ledger.json").read_text())
    ledger["steps"][0]["kept"]["documents"] -= 1
    example_run.put(run / "pages" / "ledger.json", ledger)
    assert "do not balance" in report.text(facts.read(run))


def test_colours_are_variables_so_that_dark_pages_work(written: str) -> None:
    drawings = re.findall(r"(?s)<svg.*?</svg>", written)
    assert len([d for d in drawings if 'class="plot" role="img"' in d and 'width="518' not in d]) >= 9
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


@pytest.mark.usefixtures("no_plots")
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


@pytest.mark.usefixtures("no_plots")
def test_energy_and_money_stand_with_what_they_rest_on(tmp_path: Path) -> None:
    run = example_run.build(tmp_path)
    for name, energy in (("base", 12.0), ("chat", 3.5)):
        path = run / name / "artefact.json"
        cost = {"energy_wh": energy, "energy_from": "a counter", "money": energy / 100, "money_from": "a price"}
        example_run.put(path, json.loads(path.read_text()) | {"cost": cost})
    reader = Reader()
    reader.feed(report.text(facts.read(run)))
    assert "15.5" in reader.text and "0.15" in reader.text and "Energy: a counter. Money: a price." in reader.text


def ticks(root: ElementTree.Element, axis: str) -> dict[float, float]:
    """Where the marks beside the numbers of an axis ("x" or "y") stand, in pixels."""
    found = {}
    for group in root.iter(f"{SVG}g"):
        number = next(group.iter(f"{SVG}text"), None)
        if number is not None and re.search(rf"-{axis}tick_\d+$", group.get("id", "")):
            found[float(number.text or "")] = float([*group.iter(f"{SVG}use")][-1].get(axis, "nan"))
    return found


def paths(root: ElementTree.Element, colour: str) -> list[list[tuple[float, float]]]:
    """The corners of every line of this colour, in pixels."""
    drawn = [p.get("d", "") for p in root.iter(f"{SVG}path") if f"stroke: var(--{colour})" in p.get("style", "")]
    return [[(float(x), float(y)) for x, y in re.findall(r"([\d.]+) ([\d.]+)", path)] for path in drawn]


def test_a_curve_is_drawn_where_its_numbers_are() -> None:
    """Pixels of a line, against the marks of the numbers beside it."""
    svg = plots.lines("x", {"a": [(0.0, 10.0, None, None), (4.0, 30.0, None, None)]}, "x", "y")
    root = ElementTree.fromstring(svg)
    ((x0, y0), (x1, y1)) = paths(root, "c1")[0]
    across, up = ticks(root, "x"), ticks(root, "y")
    assert x1 > x0 and y1 < y0, "to the right and up: pixels count downwards"
    assert x0 == pytest.approx(across[0], abs=0.2) and x1 == pytest.approx(across[4], abs=0.2)
    assert y0 == pytest.approx(up[10], abs=0.2) and y1 == pytest.approx(up[30], abs=0.2)


def test_the_best_step_is_marked_where_it_is_and_the_gap_is_under_it() -> None:
    validation = [(100.0, 2.0), (200.0, 1.0), (300.0, 1.5)]
    gap, rate = [(100.0, 0.0), (200.0, 0.1), (300.0, 0.6)], [(0.0, 0.0), (400.0, 1.0)]
    root = ElementTree.fromstring(plots.learning("x", [], validation, gap, validation[1], rate))
    across = ticks(root, "x")
    (line,) = paths(root, "soft")
    assert [x for x, _ in line] == pytest.approx([across[200]] * 2, abs=0.2)
    text = next(t for t in root.iter(f"{SVG}text") if t.text == "best 1.000 at step 200")
    assert "end" in text.get("style", "") or float(text.get("x", 0)) > across[200]
    found = next(path for path in paths(root, "c4") if len(path) == 3)
    assert [x for x, _ in found] == pytest.approx([across[step] for step in (100, 200, 300)], abs=0.2)
    assert found[0][1] > found[1][1] > found[2][1] > max(y for _, y in paths(root, "c2")[0]), "grows, under the losses"


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0, 3.0])
def test_labels_and_losses_of_any_kind_are_drawn(loss: float) -> None:
    """What matplotlib would take for a formula, what HTML would take for an attribute, Chinese, no numbers at all."""
    words = '$x^$ id="a" #0a0001 <b> \u4e2d\u6587'
    svg = plots.intervals(words, [words], {words: [(loss, None, None)]})
    svg += plots.learning(words, [(1, loss), (2, loss)], [(1, loss), (2, loss)], [(1, loss), (2, loss)])
    reader = Reader()
    reader.feed(svg)
    assert reader.open == [] and reader.text.count(words) == 2 and "b" not in reader.tags
    identifiers = [value for name, value in reader.attributes if name == "id"]
    assert identifiers and all(re.fullmatch(r"[\w.-]+", value or "") for value in identifiers)


def test_long_labels_leave_room_for_the_picture() -> None:
    svg = plots.bars("x", [("\u4e2d" * 99, 1.0), ("a" * 99, 2.0)], "seconds")
    left = min(ticks(ElementTree.fromstring(svg), "x").values())
    assert left < 0.6 * 72 * plots.WIDTH and "\u2026" in svg


@pytest.mark.usefixtures("no_plots")
def test_without_matplotlib_there_are_tables(run: Path) -> None:
    text = report.text(facts.read(run))
    assert "xz -9" in text and "matplotlib" in text and 'class="plot"' not in text


def test_matplotlib_is_imported_for_pictures_only_and_never_its_windows(run: Path) -> None:
    code = (
        "import sys, pathlib\nfrom modelworks.recipes import report\nbefore = 'matplotlib' in sys.modules\n"
        "report.write(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))\n"
        "print(before, 'matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(run), str(run.parent / "alone.html")]
    assert subprocess.run(command, capture_output=True, text=True).stdout.split() == ["False", "True", "False"]


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
