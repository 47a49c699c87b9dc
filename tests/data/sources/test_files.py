"""files: every kind is read, every hostile file is counted with its reason, nothing crashes, nothing escapes."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelworks.base.errors import UserError
from modelworks.data import collect, corpus
from modelworks.data.corpus import Document, Rejected
from modelworks.data.decode import decode, language
from modelworks.data.lines import zstd
from modelworks.data.sources import _archives, _records, files

CHINESE = "北京是中华人民共和国的首都，是全国政治中心、文化中心和国际交往中心。今天天气很好，我们去公园。"


def read(place: Path | str) -> tuple[dict[str, Document], dict[str, str]]:
    """Documents by id without its scheme, and reasons of what was rejected by id."""
    items = list(files.documents(str(place)))
    documents = {i.id.removeprefix("files:"): i for i in items if isinstance(i, Document)}
    rejected = {i.id: i.reason for i in items if isinstance(i, Rejected)}
    assert len(documents) + sum(isinstance(i, Rejected) for i in items) == len(items)  # ids are unique
    for document in documents.values():
        assert document.meta["source"] == "files" and document.meta["path"] and document.meta["title"]
        json.dumps(document.meta).encode()
    return documents, rejected


def pdf(text: str) -> bytes:
    """A minimal PDF of one page, made by hand (ISO 32000-1, 7.5)."""
    stream = f"BT /F1 24 Tf 72 700 Td ({text}) Tj ET".encode()
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        b"<< /Length %d >>\nstream\n%s\nendstream" % (len(stream), stream),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        b"<< /Title (A hand-made page) >>",
    ]
    out, places = b"%PDF-1.4\n", []
    for number, body in enumerate(objects, start=1):
        places.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(out)
    out += b"xref\n0 7\n0000000000 65535 f \n" + table
    return out + b"trailer\n<< /Size 7 /Root 1 0 R /Info 6 0 R >>\nstartxref\n%d\n%%%%EOF\n" % start


def tarred(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return out.getvalue()


PLAIN = {"a.txt": b"plain text of a", "b.md": b"# Title of b\n\nwords"}
WAYS = {
    "x.zip": zipped(PLAIN),
    "x.tar": tarred(PLAIN),
    "x.tar.gz": gzip.compress(tarred(PLAIN)),
    "x.tgz": gzip.compress(tarred(PLAIN)),
    "x.tar.bz2": bz2.compress(tarred(PLAIN)),
    "x.tar.xz": lzma.compress(tarred(PLAIN)),
    "x.tar.zst": zstd().compress(tarred(PLAIN)),
}


def test_every_kind_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.txt").write_text("some words here")
    (tmp_path / "b.md").write_text("# The title #\n\nmore words")
    (tmp_path / "c.html").write_text("<html lang='de'><title>A &amp; B</title><p>text")
    (tmp_path / "d.rst").write_text("=====\nHead!\n=====\n\nwords")
    (tmp_path / "e.pdf").write_bytes(pdf("Hello from a page"))
    (tmp_path / "f.jsonl").write_text('{"text": "one", "title": "T"}\n\n{"q": "what", "n": 3}\n"three"\n')
    (tmp_path / "g.csv").write_text('review;label\n"good; cheap";1\n;2\n')
    (tmp_path / "h.tsv").write_text("name\tprice\nbread\t2\n")
    (tmp_path / "i.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": "p one"}, {"context": "p 2"}]}]}))
    (tmp_path / "j.txt.gz").write_bytes(gzip.compress(b"packed words"))
    documents, rejected = read(tmp_path)
    text = {id: d.text for id, d in documents.items()}
    assert text == {
        "sub/a.txt": "some words here",
        "b.md": "# The title #\n\nmore words",
        "c.html": "<html lang='de'><title>A &amp; B</title><p>text",
        "d.rst": "=====\nHead!\n=====\n\nwords",
        "e.pdf": "Hello from a page",
        "f.jsonl#1": "one",
        "f.jsonl#3": "q: what\nn: 3",
        "f.jsonl#4": "three",
        "g.csv#2": "good; cheap",
        "h.tsv#2": "name: bread\nprice: 2",
        "i.json#1.1": "p one",
        "i.json#1.2": "p 2",
        "j.txt": "packed words",
    }
    assert rejected == {"g.csv#3": "empty"}
    titles = {id: d.meta["title"] for id, d in documents.items()}
    assert titles["b.md"] == "The title" and titles["c.html"] == "A & B" and titles["d.rst"] == "Head!"
    assert titles["e.pdf"] == "A hand-made page" and titles["f.jsonl#1"] == "T" and titles["sub/a.txt"] == "a"
    assert documents["c.html"].meta["language"] == "de"


@pytest.mark.parametrize("name", WAYS)
def test_archives(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(WAYS[name])
    documents, rejected = read(tmp_path / name)
    assert {id: d.text.encode() for id, d in documents.items()} == {f"{name}!{n}": d for n, d in PLAIN.items()}
    assert not rejected


@pytest.mark.parametrize("name", [*WAYS, "x.txt.gz", "x.jsonl.zst", "x.txt.xz", "x.txt.bz2", "x.pdf"])
def test_cut_short_or_spoilt_is_counted(tmp_path: Path, name: str) -> None:
    noise = random.Random(0).randbytes(4000).hex().encode()  # so that a cut falls inside the data
    members = {"a.txt": b"first words", "b.txt": noise, "c.txt": b"last words"}
    lines = b"".join(b'{"text": "%s"}\n' % noise[i : i + 100] for i in range(0, 4000, 100))
    whole = {
        "x.zip": zipped(members),
        "x.tar": tarred(members),
        "x.txt.gz": gzip.compress(noise),
        "x.jsonl.zst": zstd().compress(lines),
        "x.txt.xz": lzma.compress(noise),
        "x.txt.bz2": bz2.compress(noise),
        "x.pdf": pdf("words"),
    }.get(name) or {
        ".gz": gzip.compress,
        ".tgz": gzip.compress,
        ".bz2": bz2.compress,
        ".xz": lzma.compress,
        ".zst": zstd().compress,
    }[os.path.splitext(name)[1]](tarred(members))
    for share in (0.001, 0.2, 0.5, 0.8 if name != "x.tar" else 0.51):  # the rest of a plain tar is its end mark
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        documents, rejected = read(tmp_path / name)
        if not (name == "x.pdf" and documents):  # pypdf may rebuild what was cut off
            assert rejected, (name, share)
            assert set(rejected.values()) <= {
                "damaged or truncated",
                "damaged PDF",
                "empty",
                "PDF without text (a scan?)",
            }
    rng = random.Random(name)
    for _ in range(15):  # flipped bytes: whatever comes, no crash
        spoilt = bytearray(whole)
        for _ in range(5):
            spoilt[rng.randrange(len(spoilt))] ^= 1 << rng.randrange(8)
        (tmp_path / name).write_bytes(bytes(spoilt))
        read(tmp_path / name)


def test_a_bad_member_leaves_the_others(tmp_path: Path) -> None:
    data = zipped({"a.txt": b"first", "b.txt": b"SECOND MEMBER", "c.txt": b"third"}, zipfile.ZIP_STORED)
    (tmp_path / "x.zip").write_bytes(data.replace(b"SECOND MEMBER", b"SECOND_MEMBER", 1))
    documents, rejected = read(tmp_path / "x.zip")
    assert set(documents) == {"x.zip!a.txt", "x.zip!c.txt"} and rejected == {"x.zip!b.txt": "damaged or truncated"}


def test_bombs_do_not_unfold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_archives, "SLACK", 1 << 20)
    big = b"a" * (8 << 20)
    inner = tarred({"a.txt": big})
    bombs = {
        "a.txt.gz": gzip.compress(big),
        "b.jsonl.zst": zstd().compress(big),
        "c.zip": zipped({"a.txt": big}),
        "d.tar.gz": gzip.compress(inner),
        "e.tar": tarred({"a.txt.gz": gzip.compress(big)}),
        "f.csv.xz": lzma.compress(big),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    documents, rejected = read(tmp_path)
    assert not documents
    assert set(rejected.values()) == {"expands too much (a zip bomb?)"} and len(rejected) >= len(bombs)
    (tmp_path / "nested").mkdir()
    (tmp_path / "nested" / "n.zip").write_bytes(zipped({"i.zip": zipped({"a.txt": b"x"}), "b.txt": b"words"}))
    documents, rejected = read(tmp_path / "nested")
    assert list(documents) == ["n.zip!b.txt"] and rejected == {"n.zip!i.zip": "archive inside an archive"}


def test_hostile_places(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("do not read")
    place = tmp_path / "in"
    (place / ".git").mkdir(parents=True)
    (place / ".git" / "x.txt").write_text("hidden")
    (place / "good.txt").write_text("good words")
    (place / "out.txt").symlink_to(secret)
    (place / "outside").symlink_to(tmp_path)
    (place / "loop").symlink_to(place)
    (place / "self.txt").symlink_to(place / "self.txt")
    (place / "in.txt").symlink_to(place / "good.txt")
    (place / "empty.txt").write_bytes(b"")
    (place / "blank.txt").write_text(" \n\n")
    (place / "code.py").write_text("x = 1")
    os.mkfifo(place / "pipe.txt")
    (place / os.fsdecode(b"\xff\xfename.txt")).write_text("odd name")
    data = tarred({"../../escape.txt": b"climbing words", "/abs.txt": b"absolute words"})
    (place / "t.tar").write_bytes(data)
    documents, rejected = read(place)
    assert {d.text for d in documents.values()} == {"good words", "odd name", "climbing words", "absolute words"}
    assert rejected.pop("self.txt") in ("cannot be read", "link (its target is read itself)")
    assert rejected == {
        ".git": "hidden",
        "out.txt": "link out of the folder",
        "outside": "link out of the folder",
        "loop": "link (its target is read itself)",
        "in.txt": "link (its target is read itself)",
        "empty.txt": "empty",
        "blank.txt": "empty",
        "code.py": "kind not read (.py)",
        "pipe.txt": "not a regular file",
    }
    collect.collect([f"files:{place}"], tmp_path / "out")
    assert len(list(corpus.read(tmp_path / "out"))) == 4
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "secret.txt"]  # nothing was unpacked


def test_hostile_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_records, "LONGEST", 1 << 16)
    monkeypatch.setattr(files, "LONGEST", 1 << 16)
    (tmp_path / "a.jsonl").write_bytes(
        b'{"text": "lone \\ud800 surrogate"}\n{"text": "nul \\u0000"}\nnot json\n[1,2]\n{"text": "\xff"}\n'
        b'{"text": "' + b"x" * (1 << 18) + b'"}\n' + b"[" * 60000 + b'\n{"text": null}\n{"text": "end"}'
    )
    (tmp_path / "b.csv").write_bytes(b'text,"n\n' + b'"unclosed, \x00\n' * 10)
    (tmp_path / "c.csv").write_bytes(random.Random(0).randbytes(3000))
    (tmp_path / "d.json").write_text('[{"text": "fine"}, 3')
    (tmp_path / "e.txt").write_bytes(b"y" * (1 << 17))
    (tmp_path / "f.json").write_text("[" * 50000)
    documents, rejected = read(tmp_path)
    assert {id: d.text for id, d in documents.items() if id.startswith("a.")} == {
        "a.jsonl#1": "lone \ufffd surrogate",
        "a.jsonl#2": "nul \0",
        "a.jsonl#9": "end",
    }
    assert rejected["a.jsonl#3"] == "not valid JSON" and rejected["a.jsonl#4"].startswith("a record that is neither")
    assert rejected["a.jsonl#5"] == "not UTF-8" and rejected["a.jsonl#6"].startswith("line longer")
    assert rejected["a.jsonl#7"] == "not valid JSON" and rejected["a.jsonl#8"] == "empty"
    assert rejected["c.csv"] == "not valid CSV" and rejected["d.json"] == rejected["f.json"] == "not valid JSON"
    assert rejected["e.txt"].startswith("longer than")


def test_a_named_field(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "no", "story": "yes"}\n{"text": "no"}\n')
    documents, rejected = read(f"{tmp_path}/a.jsonl#story")
    assert [d.text for d in documents.values()] == ["yes"] and rejected == {"a.jsonl#2": "no field 'story'"}


@pytest.mark.parametrize(
    ("encoding", "text", "told"),
    [
        ("utf-8", CHINESE, "utf-8"),
        ("utf-8-sig", "naïve", "utf-8"),
        ("utf-16", CHINESE, "utf-16"),
        ("utf-16-le", "plain words without a mark", "utf-16-le"),
        ("utf-16-be", "plain words without a mark", "utf-16-be"),
        ("gb18030", CHINESE, "gb18030"),
        ("gbk", CHINESE, "gb18030"),
        ("cp1252", "Le café est fermé à midi, déjà vu – “voilà”, naïveté élégante.", None),
    ],
)
def test_encodings(encoding: str, text: str, told: str | None) -> None:
    decoded = decode(text.encode(encoding))
    assert decoded is not None and decoded[0] == text
    assert told is None or decoded[1] == told


def test_declared_encodings_and_languages() -> None:
    page = f'<html><head><meta charset="gb2312"><title>页</title></head><p>{CHINESE}</p>'
    assert decode(page.encode("gbk"), html=True) == (page, "gb18030")
    evil = b'<meta charset="zlib_codec"><p>caf\xe9 au lait</p>'
    assert (decode(evil, html=True) or ("", ""))[0].startswith("<meta")
    assert (
        language(CHINESE) == "zh"
        and language("これは日本語の文章です。") == "ja"
        and language("한국어 문장입니다") == "ko"
    )
    assert language("The quick brown fox jumps over the lazy dog near the river bank.") == "en"
    assert language("12 + 3") == "und"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=400), name=st.sampled_from(["x.txt", "x.html", "x.csv", "x.json", "x.jsonl", "x.pdf",
                                                          "x.zip", "x.tar", "x.gz", "x.txt.zst", "x.md.xz"]))  # fmt: skip
def test_any_bytes_are_a_document_or_counted(tmp_path: Path, data: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(data)
    documents, rejected = read(tmp_path / name)
    assert documents or rejected or not data.strip() or name.endswith((".csv", ".jsonl", ".json", ".zip", ".zst"))


@given(data=st.binary(min_size=64, max_size=400).filter(lambda b: b.count(0) > 8))
def test_binary_is_no_text(data: bytes) -> None:
    decoded = decode(data)
    assert decoded is None or decoded[1].startswith(("utf-16", "utf-32"))


def test_nothing_there_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        list(files.documents(str(tmp_path / "nothing")))
    with pytest.raises(UserError, match="the folder is empty"):
        list(files.documents(str(tmp_path)))
    with pytest.raises(UserError, match="nothing matches"):
        list(files.documents(str(tmp_path / "*.txt")))
    (tmp_path / "a.txt").write_text("words a")
    (tmp_path / "b.md").write_text("words b")
    assert list(read(f"{tmp_path}/*.txt")[0]) == ["a.txt"]
    assert list(read(tmp_path / "b.md")[0]) == ["b.md"]
