"""Grounded answers: how passages and a question are put to a model, and whether what it says may be shown.

An answer is shown when every sentence of it is a statement of the passage that it cites (`facts.Statement`);
otherwise the passage's own sentence is shown instead, or a plain "I don't know". Nothing else ever is.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from .facts import content, head, sentences, statements
from .retrieve import Passage, one_error_apart

UNKNOWN = "I don't know."
UNKNOWN_ZH = "我不知道。"
SHOWN = 3  # passages put before the model
VIEW = 240  # characters of each that it sees

_CITED = re.compile(r"^\s*\[(\d+)\]\s*")
_NAME = re.compile(r"[A-Za-z_]\w*(?:\.\w+)+")
_PARTS = re.compile(r"[._]+")


@dataclass(frozen=True, slots=True)
class Answer:
    """What is shown: `text`, how it is grounded, and the passages behind it (empty when declined).

    `kind` is 'own' (the model's own words, each sentence checked), 'quoted' (the passage's own sentence) or
    'declined'. `raw` is what the model wrote; `supported` says whether that passed the check as it was.
    """

    text: str
    kind: str
    citations: tuple[Passage, ...] = ()
    raw: str = ""
    supported: bool = False
    seen: tuple[Passage, ...] = field(default=(), repr=False)


def view(passage: Passage, limit: int = VIEW) -> str:
    """The beginning of a passage, cut at a sentence end where there is one, else at a word."""
    title = "" if head(passage.text) or passage.title in passage.text[:200] else f"{passage.title}\n"
    text = title + re.sub(r"[ \t]*\n\s*", "\n", passage.text)
    if len(text) <= limit:
        return text
    cut = text[:limit]
    ends = [m.end() for m in re.finditer(r"[.!?](?=\s)|[。！？；]|\n", cut)]
    if ends and ends[-1] > limit // 3:
        return cut[: ends[-1]].rstrip()
    return cut if ord(cut[-1]) > 0x2E7F else cut.rsplit(" ", 1)[0]


def prompt(question: str, passages: Sequence[Passage]) -> str:
    """The user turn that the model is trained on and asked with: numbered passages, then the question."""
    numbered = [f"[{number}] {view(passage)}" for number, passage in enumerate(passages, start=1)]
    return "\n".join([*numbered, f"Question: {question.strip()}"])


def cited(raw: str, passages: Sequence[Passage]) -> tuple[Passage | None, str]:
    """Split a model's text into the passage that it cites (None where it cites none that exists) and the rest."""
    match = _CITED.match(raw)
    if not match or not 1 <= int(match[1]) <= len(passages):
        return None, raw.strip()
    return passages[int(match[1]) - 1], raw[match.end() :].strip()


def supports(passage: Passage, text: str) -> bool:
    """True when every sentence of `text` says what some statement of the passage says."""
    said = sentences(text)
    return bool(said) and all(_says(passage, sentence) for sentence in said)


def _says(passage: Passage, sentence: str) -> bool:
    tokens = content(sentence)
    variants = [tokens]
    code = head(passage.text)
    names = {passage.title.lower(), *((code.name.lower(), code.short.lower()) if code else ())}
    if len(tokens) > 1 and tokens[0] in names:
        variants.append(tokens[1:])
    return any(statement.says(variant) for statement in statements(passage) for variant in variants)


def is_quote(passage: Passage, text: str) -> bool:
    """True when the text is sentences of the passage as they stand there."""
    own = {" ".join(statement.text.split()) for statement in statements(passage) if statement.text}
    said = sentences(text)
    return bool(said) and all(" ".join(s.split()) in own for s in said)


def best_sentence(passage: Passage, wanted: str) -> str:
    """The passage's sentence that shares most with `wanted` (F1 of content tokens), the first one at a tie."""
    goal = set(content(wanted))
    best, score = "", -1.0
    for statement in statements(passage):
        if not statement.text:
            continue
        words = {word for clause in statement.clauses for word in clause}
        shared = len(words & goal)
        f1 = 2 * shared / max(len(words) + len(goal), 1)
        if f1 > score:
            best, score = statement.text, f1
    return best or passage.text.splitlines()[0]


def concerns(passage: Passage, question: str) -> bool:
    """False when the question names something dotted (`os.path.join`) that the passage is not about.

    It is about a name that stands in its text, or that is a run of its title's parts up to one typing error in each:
    `path.jion` and `os.path` for the passage `os.path.join`.
    """
    named = _NAME.findall(question.lower())
    text, title = passage.text.lower(), _PARTS.split(passage.title.lower())
    return not named or any(name in text or _run_of(title, _PARTS.split(name)) for name in named)


def _run_of(title: list[str], parts: list[str]) -> bool:
    starts = range(len(title) - len(parts) + 1)
    return any(all(map(one_error_apart, title[i : i + len(parts)], parts)) for i in starts)


def check(question: str, raw: str, passages: Sequence[Passage]) -> Answer:
    """Turn what the model wrote into what may be shown."""
    seen = tuple(passages)
    unknown = UNKNOWN_ZH if re.search(r"[\u3400-\u9fff]", question) else UNKNOWN
    passage, text = cited(raw, passages)
    if passage is None or not text or not concerns(passage, question):
        return Answer(unknown, "declined", raw=raw, supported=text.startswith((UNKNOWN, UNKNOWN_ZH)), seen=seen)
    if is_quote(passage, text):
        return Answer(text, "quoted", (passage,), raw, True, seen)
    if supports(passage, text):
        return Answer(text, "own", (passage,), raw, True, seen)
    return Answer(best_sentence(passage, f"{text} {question}"), "quoted", (passage,), raw, False, seen)
