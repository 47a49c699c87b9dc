"""The report and the card: complete, self-contained, right in their sums, safe against what documents hold."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from modelworks.base.errors import DamagedError, UserError
from modelworks.recipes import card, report
from modelworks.recipes.report_parts import facts, numbers, page

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


@pytest.mark.usefixtures("no_plots")
def test_without_matplotlib_there_are_tables(run: Path) -> None:
    text = report.text(facts.read(run))
    assert "xz -9" in text and "matplotlib" in text


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
