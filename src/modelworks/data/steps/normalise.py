"""normalise: one form for every character and line: NFC, mojibake repaired, no control or invisible characters."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator

from modelworks.base.config import Settings

from ..corpus import Account, Document

# Control characters but tab and newline; then zero-width space, word joiner, marks and overrides of direction,
# byte-order mark, soft hyphen. Joiners (U+200C, U+200D) stay: emoji, Persian and Indic scripts need them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]")
_INVISIBLE = re.compile("[\u200b\u2060\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\u00ad\ufff9-\ufffb]")
_ESCAPE = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
_NEWLINE = re.compile("\r\n?|\x0c|\u0085|\u2028|\u2029")
_TRAILING = re.compile(r"[ \t\u00a0\u3000]+$", re.M)
_BLANK = re.compile(r"\n{3,}")


class Config(Settings):
    repair: bool = True
    """Mend text that was decoded in the wrong encoding ('Ã©' for 'é'), where ftfy is sure of it."""


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield every document in normal form (NFC, not NFKC: full-width and other compatible forms are kept)."""
    repair = _repair() if config.repair else None
    for document in documents:
        text = document.text
        if repair is not None and not text.isascii():
            mended = repair(text)
            ledger.note("texts with mended encoding", int(mended != text))
            text = mended
        text = normal(text)
        if text != document.text:
            before = document.bytes
            document.text = text
            ledger.change(before, document)
        if not text:
            ledger.leave(document, "empty")
            continue
        yield document


def normal(text: str) -> str:
    """The normal form of a text; `normal(normal(x)) == normal(x)`."""
    text = _CONTROL.sub("", _ESCAPE.sub("", _NEWLINE.sub("\n", text)))
    if not text.isascii():
        text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text))
    return _BLANK.sub("\n\n", _TRAILING.sub("", text)).strip("\n")


@functools.cache
def _repair() -> Callable[[str], str] | None:
    """ftfy's repair of wrong decodings alone: no curly quotes, ligatures or widths are touched. None without ftfy."""
    try:
        import ftfy
    except ImportError:
        return None
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_control_chars=False,
        remove_terminal_escapes=False,
        normalization=None,
        explain=False,
    )

    def repair(text: str) -> str:
        # Paragraph by paragraph: one bad quotation must not decide about the rest.
        return "".join(ftfy.fix_text_segment(part, config) for part in text.splitlines(keepends=True))

    return repair
