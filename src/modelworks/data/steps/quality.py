"""quality: simple rules that leave out what is no readable text, in English, Chinese or code alike."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from modelworks.base.config import Settings

from ..corpus import Account, Document

_HAN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]")
_WORD = re.compile(r"\w", re.UNICODE)
_SOLID = re.compile(r"[^\s\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uff00-\uffef\u3000-\u303f]{200,}")


class Config(Settings):
    min_letters: int = 12
    """Letters and digits a document must have; a Chinese, Japanese or Korean character counts as three."""
    min_letter_share: float = 0.4
    """Share of letters and digits among what is not space; below it are drawings, tables of numbers' rules, noise."""
    max_repeated_lines: float = 0.5
    """Share of the text in lines that were there before, for documents of ten lines or more."""
    max_one_character: float = 0.4
    """Share of the most frequent character among what is not space."""
    max_solid: float = 0.3
    """Share of the text in runs of 200 characters and more without a space (encoded data, minified code)."""
    max_broken: float = 0.005
    """Share of characters that were lost in decoding (U+FFFD)."""


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield the documents that pass every rule; the others are counted under the rule that they fail first."""
    for document in documents:
        reason = trouble(document.text, config)
        if reason:
            ledger.leave(document, reason)
        else:
            yield document


def trouble(text: str, config: Config) -> str:
    """The first rule that a text fails, '' when it passes."""
    letters = len(_WORD.findall(text))
    if letters + 2 * len(_HAN.findall(text)) < config.min_letters:
        return "too short"
    solid = sum(len(part) for part in text.split())
    if letters < config.min_letter_share * solid:
        return "mostly symbols"
    if text.count("\ufffd") > config.max_broken * solid:
        return "broken characters"
    if solid > 200 and sum(map(len, _SOLID.findall(text))) > config.max_solid * solid:
        return "encoded data or minified code"
    counts = Counter(text)
    top = max((n for c, n in counts.items() if not c.isspace()), default=0)
    if solid >= 50 and top > config.max_one_character * solid:
        return "one character over and over"
    lines = [line for line in map(str.strip, text.split("\n")) if line]
    if len(lines) >= 10:
        again = sum(map(len, lines)) - sum(map(len, set(lines)))
        if again > config.max_repeated_lines * sum(map(len, lines)):
            return "repeated lines"
    return ""
