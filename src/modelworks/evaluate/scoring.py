"""Scores of one answer to one question: exact match, overlap of words, the passage cited, and whether it is right.

Words are those of SQuAD (lower case, no punctuation, no articles; Rajpurkar et al. 2016), Chinese counts by character
(as CMRC 2018 does, Cui et al. 2019).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from modelworks.data.facts import sentences

from .context import Given

_HAN = "\u3400-\u4dbf\u4e00-\u9fff"
_WORDS = re.compile(rf"[{_HAN}]|[^\W{_HAN}]+(?:[._][^\W{_HAN}]+)*")
_FRAME = frozenset("it is in of and from takes no arguments default class module function method inherits".split())
RIGHT = 0.5
"""Word overlap from which an answer that cites the right passage counts as right."""


def words(text: str) -> list[str]:
    """Lower-case words without articles and punctuation; each Chinese character is a word; `os.path` is one."""
    return [word for word in _WORDS.findall(text.lower()) if word not in ("a", "an", "the")]


def exact_match(said: str, wanted: str) -> float:
    """1 where both hold the same words in the same order."""
    return float(words(said) == words(wanted))


def overlap(said: str, wanted: str) -> float:
    """F1 of the words that both hold, as bags: 2 * common / (said + wanted)."""
    left, right = words(said), words(wanted)
    if not left or not right:
        return float(left == right)
    common = sum((Counter(left) & Counter(right)).values())
    return 2 * common / (len(left) + len(right))


def cited(answer: Given) -> list[str]:
    """Ids of the passages that an answer cites."""
    return [str(c["id"] if isinstance(c, dict) else c.id) for c in answer.citations]


def support(answer: Given) -> tuple[int, int]:
    """(sentences shown, those of them without support), judged apart from the check that the assistant itself makes.

    Quotes are looked up again, word for word, in what is cited. Own words must all occur there, up to verb endings
    and the words that a reply is framed with; numbers, names and negations must be there as they are.
    """
    shown = sentences(answer.text) or [answer.text]
    texts = [words(str(c["text"] if isinstance(c, dict) else c.text)) for c in answer.citations]
    if answer.kind == "own":
        return len(shown), sum(not any(_from(words(sentence), text) for text in texts) for sentence in shown)
    return len(shown), sum(not any(_within(words(sentence), text) for text in texts) for sentence in shown)


def _within(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


def _from(part: list[str], whole: list[str]) -> bool:
    known = {_bare(word) for word in whole}
    for name in (word for word in whole if "." in word):  # what a name lies in is named by it
        parts = name.split(".")
        known |= {_bare(".".join(parts[:n])) for n in range(1, len(parts))} | set(map(_bare, parts))
    return all(_bare(word) in known for word in part if word not in _FRAME)


def _bare(word: str) -> str:
    """A word without its ending, where it is a plain English one."""
    return re.sub(r"(ies|es|s|y|e)$", "", word) if word.isalpha() and word.isascii() and len(word) > 2 else word


def score(item: dict[str, Any], answer: Given) -> dict[str, Any]:
    """One item's scores, with what was asked and said; kept as the item's record.

    `correct`: the right passage is cited and the words overlap by `RIGHT` or more; for a question that no passage
    answers (`passage` is null): declined. `exact`, `f1`, `right_passage`, `cited_share` are null for the latter.
    """
    passages = cited(answer)
    wanted = item.get("passage")
    declined = answer.kind == "declined"
    record: dict[str, Any] = {
        "id": item["id"],
        "question": item["question"],
        "kind": item.get("kind"),
        "answerable": wanted is not None,
        "said": answer.text,
        "raw": answer.raw,
        "cited": passages,
        "shown_as": answer.kind,
        "raw_supported": bool(answer.supported),
    }
    record["sentences"], record["unsupported_sentences"] = (0, 0) if declined else support(answer)
    if wanted is None:
        empty = dict.fromkeys(("exact", "f1", "right_passage", "cited_share"))
        return {**record, **empty, "correct": float(declined)}
    right = float(str(wanted) in passages)
    f1 = 0.0 if declined else overlap(answer.text, item["answer"])
    return {
        **record,
        "exact": 0.0 if declined else exact_match(answer.text, item["answer"]),
        "f1": f1,
        "right_passage": right,
        "cited_share": sum(p == str(wanted) for p in passages) / len(passages) if passages else None,
        "correct": float(right and f1 >= RIGHT),
    }


def column(records: Sequence[dict[str, Any]], name: str) -> list[float]:
    """One score of every record that has it."""
    return [float(record[name]) for record in records if record[name] is not None]
