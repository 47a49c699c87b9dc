"""Passages are found by name, by words, by Chinese, with typing errors; the file is checked and damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelworks.base.errors import DamagedError, UserError
from modelworks.data import retrieve
from modelworks.data.retrieve import Passage, Passages

TEXTS = {
    "os.path.join": "function os.path.join(a, *p)\nJoin two or more pathname components.",
    "os.path": "module os.path\nCommon operations on Posix pathnames.",
    "os.path.split": "function os.path.split(p)\nSplit a pathname.",
    "str.join": "method str.join(self, iterable)\nConcatenate any number of strings.",
    "shutil.rmtree": "function shutil.rmtree(path)\nRecursively delete a directory tree.",
    "threading.RLock": "class threading.RLock\nA reentrant lock.",
    "退货政策": "收到商品后七天内可以退货，运费由买家承担。",
    "会员积分": "积分可以抵扣现金，每年年底清零。",
}


@pytest.fixture(scope="module")
def passages(tmp_path_factory: pytest.TempPathFactory) -> Passages:
    path = tmp_path_factory.mktemp("p") / "passages.sqlite"
    count = retrieve.write(path, [Passage(f"{title}#0", title, text) for title, text in TEXTS.items()])
    assert count == len(TEXTS)
    return Passages(path)


@pytest.mark.parametrize(
    ("question", "title"),
    [
        ("What does os.path.join do?", "os.path.join"),
        ("what is os.path", "os.path"),
        ("how can I delete a directory tree recursively", "shutil.rmtree"),
        ("What does os.pth.jion do?", "os.path.join"),
        ("shutl.rmtree?", "shutil.rmtree"),
        ("Could yoou tel me the purpsoe of threading.RLokc?", "threading.RLock"),
        ("reentrant lock", "threading.RLock"),
        ("几天内可以退货？", "退货政策"),
        ("积分怎么用", "会员积分"),
    ],
)
def test_the_right_one_comes_first(passages: Passages, question: str, title: str) -> None:
    assert passages.search(question)[0].title == title


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_no_question_breaks_the_search(passages: Passages, question: str) -> None:
    found = passages.search(question, 3)
    assert len(found) <= 3 and found == passages.search(question, 3)


def test_lookup_and_errors(passages: Passages, tmp_path: Path) -> None:
    assert passages.get("os.path#0").text == TEXTS["os.path"] and len(passages.all()) == len(passages) == len(TEXTS)
    with pytest.raises(UserError, match="no passage 'x'"):
        passages.get("x")
    with pytest.raises(UserError, match="no passages here"):
        Passages(tmp_path / "none.sqlite")
    (tmp_path / "junk.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(DamagedError, match=r"junk\.sqlite"):
        Passages(tmp_path / "junk.sqlite")
    with pytest.raises(UserError, match="twice"):
        retrieve.write(tmp_path / "x.sqlite", [Passage("a", "a", "a"), Passage("a", "b", "b")])
    with pytest.raises(UserError, match="no passage"):
        retrieve.write(tmp_path / "y.sqlite", [])
    assert not (tmp_path / "x.sqlite").exists() and not (tmp_path / "y.sqlite").exists()


def test_the_same_passages_give_the_same_file(tmp_path: Path) -> None:
    rows = [Passage(f"{title}#0", title, text) for title, text in TEXTS.items()]
    for name in "ab":
        retrieve.write(tmp_path / name, rows)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
