"""Passages in one SQLite file, found by FTS5's BM25 over words, identifier parts, CJK bigrams and title trigrams.

    title terms  (weight 6)   os.path.join -> os path join ospathjoin
    body terms   (weight 1)   words, identifier parts, bigrams of Chinese
    title grams  (weight 2)   character trigrams, so that `os.pth.join` still finds its passage
    name         (weight 8)   the whole title as one token, so that a thing beats what lies in it (first passages only)

A word that stands nowhere is read as the known words that one typing error away (Garbe's symmetric deletes).
Everything is indexed as plain tokens that `terms` and `grams` make, so English, code and Chinese share
one ranking: Robertson & Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond" (2009).
"""

from __future__ import annotations

import functools
import re
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from itertools import pairwise, product
from pathlib import Path
from typing import Any

from ..base import files
from ..base.errors import DamagedError, UserError

_WORD = re.compile(r"[^\W_]+", re.UNICODE)
_CAMEL = re.compile(r"[A-Z]+(?=[A-Z][a-z])|[A-Z]?[a-z]+|[A-Z]+|[0-9]+")
_NAME = re.compile(r"[A-Za-z_][\w.]*[\w]")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
# Words that a question has and an answer need not have: they would only add noise to a short query.
_ASKING = frozenset(
    (
        "a an the of to in on for is are was be do does did can could would should will what which who whom when where "
        "why how i me my you your we it its that this there please tell explain describe know want need help about and "
        "or with from by as at if so say says said mean used use like more find call list name purpose point job kind "
        "sort thing default value take takes argument arguments parameter parameters input inputs understand written "
        "text documents happens accepts given"
    ).split()
)


@dataclass(frozen=True, slots=True)
class Passage:
    """A piece of a document: small enough to show and to cite. `split` is that of its document."""

    id: str
    title: str
    text: str
    source: str = ""
    language: str = "en"
    split: str = "train"
    kind: str = "text"


def terms(text: str) -> list[str]:
    """Index terms of a text: lower-case words, parts and joins of identifiers, bigrams of Chinese runs."""
    out: list[str] = []
    for run in _CJK.findall(text):
        out += [run] if len(run) == 1 else [run[i : i + 2] for i in range(len(run) - 1)]
    plain = _CJK.sub(" ", text)
    for word in _WORD.findall(plain):
        parts = _CAMEL.findall(word) if not word.islower() else [word]
        out.append(word.lower())
        if len(parts) > 1:
            out += [part.lower() for part in parts]
    for name in _NAME.findall(plain):
        if "." in name or "_" in name:
            out.append(re.sub(r"[._]", "", name).lower())
    return out


def grams(text: str) -> list[str]:
    """Character trigrams of the letters and digits of a text, word boundaries crossed."""
    letters = re.sub(r"[\W_]+", "", _CJK.sub("", text)).lower()
    return [letters[i : i + 3] for i in range(len(letters) - 2)]


def name_token(text: str) -> str:
    """A whole title as one token: 'os.path.join' -> 'isospathjoin'."""
    return "is" + re.sub(r"[\W_]+", "", text).lower()


def one_error_apart(left: str, right: str) -> bool:
    """True when at most one typing error (a letter more, less, other or swapped) makes one word of the other."""
    return abs(len(left) - len(right)) <= 1 and not _deletions(left).isdisjoint(_deletions(right))


def _deletions(word: str) -> set[str]:
    return {word, *(word[:i] + word[i + 1 :] for i in range(len(word)))}


class Passages:
    """An open passage file: `search` ranks, `get` looks up by id. Read-only; safe to use from several threads."""

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise UserError(f"{path}: there are no passages here; run the stage that makes them.")
        self.path = path
        # immutable: the file is never written after it was sealed, so no lock or journal file is needed
        self.database = sqlite3.connect(f"file:{path}?immutable=1", uri=True, check_same_thread=False)
        try:
            self.database.execute("create virtual table temp.words using fts5vocab('main', 'found', 'row')")
            self.known = dict(self.database.execute("select term, doc from temp.words"))
            self.count: int = self.database.execute("select count(*) from passages").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise DamagedError(f"{path}: not a passage file ({error}); run the stage that makes it again.") from None

    def __len__(self) -> int:
        return self.count

    def _rows(self, where: str, values: tuple[Any, ...]) -> list[Passage]:
        query = f"select id, title, text, source, language, split, kind from passages {where}"
        return [Passage(*row) for row in self.database.execute(query, values)]

    def get(self, identifier: str) -> Passage:
        """The passage of that id. Raises UserError when there is none."""
        found = self._rows("where id = ?", (identifier,))
        if not found:
            raise UserError(f"{self.path}: there is no passage '{identifier}'.")
        return found[0]

    def all(self) -> list[Passage]:
        """Every passage, in the order in which it was written."""
        return self._rows("order by rowid", ())

    def _meant(self, term: str, shortest: int = 4) -> list[str]:
        """The term itself where it is known or short; else up to three known ones that one error made it from."""
        if term in self.known or term in _ASKING or len(term) < shortest or _CJK.match(term):
            return [term]
        near = {known for piece in _deletions(term) for known in self._deleted.get(piece, ())}
        return sorted(near, key=lambda known: (-self.known.get(known, 10**9), known))[:3] or [term]

    def _names(self, word: str) -> list[str]:
        """Titles that a word may name: itself, one error away as a whole, or one error away in each of its parts."""
        whole = self._meant(name_token(word))
        if whole[0] in self.known:
            return whole
        parts = [self._meant(part.lower(), 3) for part in re.split(r"[._]+", word) if part]
        if not 2 <= len(parts) <= 6:
            return whole
        return [name for pick in product(*parts) if (name := name_token("".join(pick))) in self.known] or whole

    @functools.cached_property
    def _deleted(self) -> dict[str, list[str]]:
        """Every known term under each text that it becomes by losing one character, and under itself."""
        out: dict[str, list[str]] = {}
        for term in (*self.known, *_ASKING):
            if len(term) >= 3 and term.isascii():
                for piece in _deletions(term):
                    out.setdefault(piece, []).append(term)
        return out

    def search(self, question: str, limit: int = 3) -> list[Passage]:
        """The best `limit` passages for a question, best first; an empty list when no term is known."""
        asked = [known for term in terms(question) for known in self._meant(term)]
        wanted = list(dict.fromkeys(t for t in asked if t not in _ASKING)) or asked
        words = [w.strip(".") for w in re.findall(r"[\w.]+", _CJK.sub(" ", question))]
        names = [known for word in words[:64] for known in self._names(word)]
        # grams of names (dots, underscores, capitals inside) that were not recognised as a whole
        named = [w for w in words if re.search(r"[._]|[a-z][A-Z]", w) and name_token(w) not in self.known]
        pieces = list(dict.fromkeys(g for w in named for g in grams(w)))
        clauses = []
        if wanted:
            clauses.append("{title body} : (" + " OR ".join(f'"{t}"' for t in wanted[:64]) + ")")
            pairs = [f'"{a} {b}"' for a, b in pairwise(asked) if a not in _ASKING or b not in _ASKING]
            clauses += ["body : (" + " OR ".join(pairs[:64]) + ")"] if pairs else []
        if pieces:
            clauses.append("grams : (" + " OR ".join(f'"{g}"' for g in pieces[:96]) + ")")
        if names:
            clauses.append("name : (" + " OR ".join(dict.fromkeys(names)) + ")")
        if not clauses:
            return []
        # ties are broken by rowid, so that the ranking is the same on every machine
        query = "select rowid from found where found match ? order by bm25(found, 6.0, 1.0, 2.0, 8.0), rowid limit ?"
        ids = [row[0] for row in self.database.execute(query, (" OR ".join(clauses), limit))]
        by_id = {row: self._rows("where rowid = ?", (row,))[0] for row in ids}
        return [by_id[row] for row in ids]


def write(path: Path, passages: Iterable[Passage]) -> int:
    """Write a passage file, atomically. Returns how many. Raises UserError when there is none or an id repeats."""
    with files.disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}{files.PARTIAL}")
        beside.unlink(missing_ok=True)
        database = sqlite3.connect(beside)
        try:
            database.execute("pragma journal_mode = off")
            database.execute("pragma page_size = 4096")
            columns = "id text unique, title text, text text, source text, language text, split text, kind text"
            database.execute(f"create table passages ({columns})")
            database.execute(
                "create virtual table found using fts5(title, body, grams, name, content='', "
                "tokenize=\"unicode61 remove_diacritics 2 categories 'L* N* Co'\")"
            )
            count = 0
            for count, passage in enumerate(passages, start=1):
                row = asdict(passage)
                database.execute(f"insert into passages values ({','.join('?' * len(row))})", tuple(row.values()))
                title, body = " ".join(terms(passage.title)), " ".join(terms(passage.text))
                name = name_token(passage.title) if passage.id.endswith("#0") else ""
                indexed = (count, title, body, " ".join(grams(passage.title)), name)
                database.execute("insert into found(rowid, title, body, grams, name) values (?, ?, ?, ?, ?)", indexed)
            database.execute("insert into found(found) values ('optimize')")
            database.commit()
        except sqlite3.IntegrityError:
            raise UserError(f"{path}: the passage id '{passage.id}' appears twice.") from None
        except sqlite3.OperationalError as error:
            if "full" in str(error):
                raise OSError(28, "No space left on device") from error
            raise
        finally:
            database.close()
        if not count:
            beside.unlink()
            raise UserError(f"{path}: no passage could be made; the corpus has no text long enough.")
        files.fsync(beside)
        beside.replace(path)
        files.fsync(path.parent)
        return count
