"""Corpora: what goes in comes out, the ledger balances or says so, damage is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelworks.base.errors import DamagedError, FailureError, UserError
from modelworks.data import collect, corpus, lines
from modelworks.data.corpus import Account, Document, Ledger, Rejected

# Any code point, lone surrogates and NUL included.
JUNK = st.text(alphabet=st.characters(exclude_categories=()), max_size=60)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(items=st.lists(st.tuples(JUNK, JUNK, st.sampled_from(["keep", "reject"]), st.sampled_from(["", "a", "b"]))))
def test_any_text_is_written_and_read_back_and_the_ledger_balances(tmp_path: Path, items: list[tuple]) -> None:
    ledger = Ledger()
    account = ledger.step("junk")

    def documents():
        for number, (id, text, fate, split) in enumerate(items):
            meta = {"source": "test", "junk": text, "n": number} | ({"split": split} if split else {})
            item = Document(id, text, meta) if fate == "keep" else Rejected(id, text, number)
            account.came.add(1, item.bytes)
            if isinstance(item, Rejected):
                account.leave(item)
            else:
                account.kept.add(1, item.bytes)
                yield item

    corpus.write(tmp_path, documents(), ledger)
    back = sorted(corpus.read(tmp_path), key=lambda d: d.meta["n"]) if ledger.shards else []
    kept = [(lines.mend(id), lines.mend(text)) for id, text, fate, _ in items if fate == "keep"]
    assert [(d.id, d.text) for d in back] == kept
    again = corpus.ledger_of(tmp_path)
    again.check()
    assert again.as_dict() == ledger.as_dict()
    assert sum(c.bytes for c in again.splits.values()) == sum(len(text.encode()) for _, text in kept)


def test_a_forgotten_document_or_byte_breaks_the_balance() -> None:
    account = Account("careless")
    for _ in account.outgoing(d for d in account.incoming([Document("a", "x"), Document("b", "y")]) if d.id == "a"):
        pass
    with pytest.raises(FailureError, match=r"careless.*does not balance"):
        account.check()
    account = Account("silent")
    for document in account.incoming([Document("a", "xyz")]):
        document.text = "x"
        list(account.outgoing([document]))
    with pytest.raises(FailureError, match="bytes"):
        account.check()
    ledger = Ledger()
    ledger.step("one").kept.add(1, 1)
    ledger.accounts[0].came.add(1, 1)
    ledger.step("two")
    with pytest.raises(FailureError, match="step two got 0"):
        ledger.check()


def test_shards_are_cut_at_their_size_and_read_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SHARD_BYTES", 500)
    corpus.write(tmp_path, [Document(str(i), "words " * 20, {}) for i in range(20)])
    assert len(list(tmp_path.glob("all-*.jsonl.zst"))) > 3
    assert [d.id for d in corpus.read(tmp_path)] == [str(i) for i in range(20)]


def test_damage_is_found_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "c"
    corpus.write(folder, [Document(str(i), f"text number {i} " * 9, {}) for i in range(200)])
    shard = folder / "all-00000.jsonl.zst"
    whole = shard.read_bytes()
    for spoilt in (whole[: len(whole) // 2], whole[:-3], b"junk" + whole, bytes(reversed(whole)), b""):
        shard.write_bytes(spoilt)
        with pytest.raises(DamagedError, match=r"all-00000\.jsonl\.zst"):
            list(corpus.read(folder))
    for place in range(20, len(whole) - 1, max(1, len(whole) // 25)):  # a flipped bit anywhere
        shard.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(DamagedError):
            list(corpus.read(folder))
    shard.unlink()
    lines.write(shard, [{"id": "1", "text": "x", "meta": {}}])
    with pytest.raises(DamagedError, match="holds 1 documents where 200 belong"):
        list(corpus.read(folder))
    shard.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        list(corpus.read(folder))
    (folder / "ledger.json").write_text(json.dumps({"steps": 3}))
    with pytest.raises(DamagedError, match="is not a ledger"):
        list(corpus.read(folder))


def test_wrong_places_are_one_clear_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no such folder"):
        corpus.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="is not a corpus"):
        corpus.read(tmp_path)
    corpus.write(tmp_path, [Document("a", "b", {"split": "train"})])
    with pytest.raises(UserError, match="did you mean 'train'"):
        corpus.read(tmp_path, "trian")


def test_collect_refuses_unknown_sources_and_places_without_documents(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'pydoc'"):
        collect.collect(["pydocs:stdlib"], tmp_path / "o")
    with pytest.raises(UserError, match=r"files:some/dir"):
        collect.collect(["some/dir"], tmp_path / "o")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.bin").write_bytes(b"\0\1")
    with pytest.raises(UserError, match=r"no document could be read.*kind not read"):
        collect.collect([f"files:{tmp_path / 'in'}"], tmp_path / "o")


def test_the_same_id_from_two_places_stays_two_documents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.txt").write_text(f"text of {name}")
    ledger = collect.collect([f"files:{tmp_path / 'one'}", f"files:{tmp_path / 'two'}"], tmp_path / "out")
    assert [d.id for d in corpus.read(tmp_path / "out")] == ["files:a.txt", "files:a.txt~2"]
    assert ledger.accounts[0].kept.documents == 2
