"""prepare: steps by name, settings checked, ledger from collect to the end; and the whole chain on real text."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from modelworks.base.errors import UserError
from modelworks.data import collect, corpus, prepare, sets, tokens
from modelworks.data.corpus import Document, Ledger
from modelworks.data.tokenizer import Tokenizer

ALL = ["extract", "normalise", "quality", "dedup", "pii", "split"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    ledger = Ledger()
    account = ledger.step("collect")
    documents = [Document(f"d{i}", f"This is text number {i} about topic {i * 7}.", {"source": "t"}) for i in range(40)]
    documents += [Document("again", documents[3].text, {}), Document("short", "x", {})]
    corpus.write(tmp_path / "source", account.outgoing(account.incoming(documents)), ledger)
    return tmp_path / "source"


def test_the_ledger_runs_through(source: Path, tmp_path: Path) -> None:
    ledger = prepare.prepare(source, [*ALL[:3], {"dedup": {"threshold": 1.0}}, *ALL[4:]], tmp_path / "out", seed=5)
    assert [a.step for a in ledger.accounts] == ["collect", *ALL]
    assert ledger.accounts[3].left["too short"].documents == 1
    assert ledger.accounts[4].left["exact duplicate"].documents == 1
    assert sum(c.documents for c in ledger.splits.values()) == 40 and set(ledger.splits) >= {"train", "validation"}
    assert ("dedup", "left: exact duplicate", 1, 35) in [(*row[:3], 35) for row in ledger.table()]
    again = prepare.prepare(source, ALL, tmp_path / "again", seed=5)
    assert {d.id: d.meta["split"] for d in corpus.read(tmp_path / "out")} == {
        d.id: d.meta["split"] for d in corpus.read(tmp_path / "again")
    }
    assert again.as_dict()["steps"][-1] == ledger.as_dict()["steps"][-1]
    assert (tmp_path / "out" / "train-00000.jsonl.zst").read_bytes() == (
        tmp_path / "again" / "train-00000.jsonl.zst"
    ).read_bytes()


def test_mistakes_are_told_before_any_work(source: Path, tmp_path: Path) -> None:
    for steps, words in (
        (["normalize"], "did you mean 'normalise'"),
        ([{"split": {"validaton": 0.1}}], "did you mean 'validation'"),
        ([{"dedup": {"threshold": 3}}], "less than or equal to 1"),
        ([{"a": 1, "b": 2}], "is not a step"),
        (["passages"], "a stage of its own"),
    ):
        with pytest.raises(UserError, match=words):
            prepare.prepare(source, steps, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"no document is left after quality \(42 too short\)"):
        prepare.prepare(source, [{"quality": {"min_letters": 500}}], tmp_path / "none")


def test_the_standard_library_from_source_to_tokens(tmp_path: Path) -> None:
    start = time.process_time()
    collect.collect(["pydoc:stdlib"], tmp_path / "pages")
    ledger = prepare.prepare(tmp_path / "pages", ALL, tmp_path / "corpus", seed=1)
    tokenizer = Tokenizer.train((d.text for d in corpus.read(tmp_path / "corpus", "train")), 4096)
    facts = tokens.encode_corpus(tmp_path / "corpus", tokenizer, tmp_path / "tokens")
    assert time.process_time() - start < 30  # processor seconds; about 7 here
    assert ledger.splits["train"].documents > 4000 and ledger.accounts[-1].kept.documents > 4800
    assert all(facts[split]["bytes"] == count.bytes for split, count in ledger.splits.items())
    assert 3.2 < facts["train"]["bytes"] / facts["train"]["tokens"] < 4.5
    assert max(sum(c.documents for c in a.left.values()) for a in ledger.accounts) < 250


@pytest.mark.small
def test_real_pages(real_data: Path, tmp_path: Path) -> None:
    """Main text of 121 news pages against the marked articles: the benchmark's 4-gram F1 is 0.94."""
    import gzip
    import json
    import re

    collect.collect([f"files:{real_data / 'article_extraction' / 'html'}"], tmp_path / "pages")
    prepare.prepare(tmp_path / "pages", ["extract", "normalise"], tmp_path / "corpus")
    truth = json.loads(gzip.decompress((real_data / "article_extraction" / "ground-truth.json.gz").read_bytes()))

    def shingles(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"\w+", text.lower())
        return {tuple(words[i : i + 4]) for i in range(max(1, len(words) - 3))}

    scores = []
    for document in corpus.read(tmp_path / "corpus"):
        left = shingles(document.text)
        right = shingles(truth[Path(document.meta["path"]).stem]["articleBody"])
        scores.append(2 * len(left & right) / (len(left) + len(right)))
    assert len(scores) == 121 and sum(scores) / len(scores) > 0.9


def test_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODELWORKS_DATA", raising=False)
    assert [s.name for s in sets.sets()] == [sets.EMBEDDED] and "language reference" in sets.show(sets.EMBEDDED)
    with pytest.raises(UserError, match="MODELWORKS_DATA names no folder"):
        sets.find("poems")
    with pytest.raises(UserError, match="needs no copy"):
        sets.get(sets.EMBEDDED, tmp_path / "x")
    (tmp_path / "data" / "poems").mkdir(parents=True)
    (tmp_path / "data" / "poems" / "README.md").write_text(
        "# poems\n\nTask: reading. Language: zh. Rows: 3.5 k.\n\nLicence: MIT."
    )
    (tmp_path / "data" / "poems" / "p.txt").write_text("春眠不觉晓")
    monkeypatch.setenv("MODELWORKS_DATA", str(tmp_path / "data"))
    poems = sets.find("poems")
    assert (poems.task, poems.language, poems.rows, poems.licence) == ("reading", "zh", "3.5 k", "MIT")
    with pytest.raises(UserError, match="did you mean 'poems'"):
        sets.find("poem")
    assert (sets.get("poems", tmp_path / "copy") / "p.txt").read_text() == "春眠不觉晓"
    monkeypatch.setenv("MODELWORKS_DATA", str(tmp_path / "none"))
    with pytest.raises(UserError, match="there is no folder"):
        sets.sets()
