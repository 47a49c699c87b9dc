"""Passages, questions, preferences and reading pages: what is derived from documents keeps to the documents."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from modelworks.base.errors import UserError
from modelworks.data import corpus, grounding, lines
from modelworks.data.corpus import Document, Ledger
from modelworks.data.retrieve import Passages
from modelworks.data.steps import _phrasing, passages, preferences, questions, reading

VERBS = ["Return", "Parse", "Delete", "Open", "Send", "Create", "Check", "Convert", "Read", "Write"]
THINGS = ["socket", "file", "header", "window", "message", "table", "clock", "folder", "thread", "number"]
CHINESE = "收到{a}后七天内可以退货，运费由买家承担。如果{a}有质量问题，商家会在三天之内给{b}全额退款。{b}的投诉由客服中心处理。"


def split_of(number: int) -> str:
    return "test" if number % 10 == 0 else "validation" if number % 10 == 1 else "train"


def documents() -> list[Document]:
    out = []
    for n in range(200):
        verb, thing, other = VERBS[n % 10], THINGS[(n // 10) % 10], THINGS[(n + n // 10) % 10]
        name = f"pack{n % 7}.{thing}s.{verb.lower()}_{other}{n}"
        signature = f"{name.rsplit('.', 1)[-1]}(first{n}, mode{n}={n}, *rest)"
        text = f"{signature}\n\n{verb} the {other} number {n} of a {thing}.\n\nIt is slow when the {thing} is large."
        meta = {"kind": "function", "symbol": name, "signature": signature, "split": split_of(n), "language": "en"}
        out.append(Document(f"pydoc:{name}", text, meta))
    for n in range(40):
        text = CHINESE.format(a=f"商品{'甲乙丙丁戊己庚辛壬癸'[n % 10]}", b=f"客户{'春夏秋冬东南西北金木'[n // 4]}") * 2
        out.append(Document(f"files:{n}", text, {"title": f"规定{n}", "split": split_of(n), "language": "zh"}))
    return out


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, out = tmp_path_factory.mktemp("corpus"), tmp_path_factory.mktemp("made")
    ledger = Ledger()
    account = ledger.step("made up")
    corpus.write(source, account.outgoing(account.incoming(documents())), ledger)
    for step, config in (
        (passages, passages.Config()), (questions, questions.Config()), (preferences, preferences.Config()),
        (reading, reading.Config(answered=50, repeated=30)),
    ):  # fmt: skip
        assert all(step.build(source, out, config, 1).values())
    return out


def rows(made: Path, kind: str, split: str) -> list[dict]:
    return list(lines.read(made / kind / f"{split}.jsonl.zst"))


def test_a_long_sentence_is_cut_between_words_and_chinese_anywhere() -> None:
    words = [f"platform-and-compiler-specific{n}" for n in range(60)]
    pieces = [p.text for p in passages.cut(Document("a", " ".join(words)), 200)]
    assert len(pieces) > 5 and max(map(len, pieces)) <= 200
    assert [word for piece in pieces for word in piece.split()] == words
    chinese = "".join(chr(0x4E00 + n) for n in range(700))
    assert "".join(p.text.replace("\n", "") for p in passages.cut(Document("b", chinese), 200)) == chinese


def test_first_passages_of_code_say_what_they_are(made: Path) -> None:
    found = Passages(made / passages.FILE)
    first = found.get("pydoc:pack0.sockets.return_socket0#0")
    assert first.text.startswith("function pack0.sockets.return_socket0(first0, mode0=0, *rest)\nReturn the socket")
    assert {p.language for p in found.all()} == {"en", "zh"} and all(len(p.text) <= 700 for p in found.all())


def test_phrasing_and_symbols_are_held_out(made: Path) -> None:
    seen = {q["passage"] for q in rows(made, "questions", "train")} - {None}
    for split in ("validation", "test"):
        asked = rows(made, "questions", split)
        assert len(asked) >= 30 and not seen & {q["passage"] for q in asked}
        splits = {Passages(made / passages.FILE).get(q["passage"]).split for q in asked if q["passage"]}
        assert splits == {split}
    assert all(not set(_phrasing.train_phrases(k)) & set(_phrasing.held_out_phrases(k)) for k in _phrasing.PHRASES)


def test_every_answer_stands_in_its_passage(made: Path) -> None:
    found, kinds = Passages(made / passages.FILE), set()
    for split in ("train", "test"):
        for item in rows(made, "questions", split):
            kinds.add(item["kind"])
            if item["passage"] is None:
                assert item["answer"] in (grounding.UNKNOWN, grounding.UNKNOWN_ZH)
                continue
            passage = found.get(item["passage"])
            assert grounding.supports(passage, item["answer"]) or grounding.is_quote(passage, item["answer"]), item
    assert {"purpose", "arguments", "default", "kind", "reverse", "quote_zh", "unanswerable"} <= kinds


def test_conversations_cite_what_they_show(made: Path) -> None:
    found = Passages(made / passages.FILE)
    cited = 0
    for talk in rows(made, "conversations", "train"):
        asked, said = (message["content"] for message in talk["messages"])
        shown = [found.get(identifier) for identifier in talk["meta"]["shown"]]
        assert asked == grounding.prompt(asked.rpartition("Question: ")[2], shown)
        passage, text = grounding.cited(said, shown)
        cited += passage is not None
        assert passage is None or passage.id == talk["meta"]["passage"]
        answer = grounding.check(asked.rpartition("Question: ")[2], said, shown)
        assert (answer.kind == "declined") == (passage is None) and (answer.supported or not text)
    assert cited > 100


def test_rejected_answers_are_worse(made: Path) -> None:
    found, ways = Passages(made / passages.FILE), set()
    for pair in rows(made, "preferences", "train"):
        ways.add(pair["meta"]["way"])
        assert pair["chosen"] != pair["rejected"] and len(pair["messages"]) == 1
        shown = [found.get(identifier) for identifier in pair["meta"]["shown"]]
        wrong, text = grounding.cited(pair["rejected"], shown)
        if pair["meta"]["way"] == "changed detail":
            assert wrong and not grounding.supports(wrong, text), pair
    assert {"other passage", "changed detail"} <= ways


def test_reading_pages_are_for_training_only(made: Path) -> None:
    before = {d.id: d.meta["split"] for d in documents()}
    pages = [d for d in corpus.read(made) if d.id not in before]
    assert {d.meta["split"] for d in pages} == {"train"} and len(pages) == 80
    twice = [d.text for d in pages if d.id.startswith("repeated")]
    assert all(text[: len(text) // 2] == text[len(text) // 2 + 1 :] for text in twice)
    held_out = [d.text for d in documents() if d.meta["split"] != "train"]
    assert not any(text[:60] in page.text for text in held_out for page in pages if page.id.startswith("repeated"))


def test_the_same_seed_gives_the_same_files(made: Path, tmp_path: Path) -> None:
    (tmp_path / passages.FILE).write_bytes((made / passages.FILE).read_bytes())
    questions.build(made, tmp_path, questions.Config(), 1)
    for split in ("train", "test"):
        assert rows(tmp_path, "questions", split) == rows(made, "questions", split)
    questions.build(made, tmp_path, questions.Config(), 2)
    assert rows(tmp_path, "questions", "train") != rows(made, "questions", "train")


def test_too_little_text_is_told(tmp_path: Path) -> None:
    corpus.write(tmp_path / "c", [Document("a", "Short.", {"split": "train"})])
    with pytest.raises(UserError, match="too few or too short"):
        passages.build(tmp_path / "c", tmp_path, passages.Config(), 1)
        questions.build(tmp_path / "c", tmp_path, questions.Config(), 1)


def test_verbs_get_their_endings() -> None:
    said = [_phrasing.as_predicate(s) for s in ("Return it.", "Push a.", "Copy b.", "Returns x.", "The y.", "Go.")]
    assert said == ["returns it", "pushes a", "copies b", "returns x", "", ""]
    assert all(a != b for a, b in pairwise(sorted(p for all_of in _phrasing.PHRASES.values() for p in all_of)))
