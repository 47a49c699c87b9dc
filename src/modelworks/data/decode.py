"""Bytes to text: which encoding, is it text at all, and which language it is in."""

from __future__ import annotations

import codecs
import re

_BOMS = [
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
]
_CONTROLS = bytes(set(range(32)) - {9, 10, 12, 13, 27}) + b"\x7f"
_META = re.compile(rb"""<(?:meta|\?xml)[^>]{0,200}?(?:charset|encoding)\s*=\s*["']?([A-Za-z0-9_-]{2,40})""", re.I)

_HAN = re.compile(r"[\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA = re.compile(r"[\u3040-\u30ff]")
_HANGUL = re.compile(r"[\uac00-\ud7af\u1100-\u11ff]")
_LETTER = re.compile(r"[^\W\d_]")
_TAG = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->|<[^>]*>", re.I | re.S)
_DECLARED = re.compile(r"<html\b[^>]{0,500}?\slang\s*=\s*[\"']?([a-z]{2})\b", re.I)
# What the statistics may answer: without this list, menus and code are taken for small languages.
_KNOWN = frozenset(
    "en zh de fr es pt it nl sv da no nb nn fi is pl cs sk hu ro bg sr hr sl uk ru be lt lv et el tr ar he fa ur hi bn "
    "ta te mr th vi id ms tl ja ko ca gl eu ga cy sq mk ka hy az kk uz mn sw af la".split()
)


def decode(data: bytes, html: bool = False) -> tuple[str, str] | None:
    """The text of `data` and the name of its encoding; None when it is not text, or in no encoding we can tell.

    Tries byte-order marks, UTF-8, what HTML declares, UTF-16 without mark, GB18030 (only where the result is
    plausible Chinese), then resiliparse's detector and Windows-1252.
    """
    name = encoding(data, html)
    if name is None:
        return None
    try:
        return data.decode(name), name.removesuffix("-sig")
    except (UnicodeDecodeError, LookupError):
        return None


def encoding(data: bytes, html: bool = False) -> str | None:
    """The encoding that decodes all of `data`, None when it looks binary or nothing fits."""
    for mark, name in _BOMS:
        if data.startswith(mark) and _decodes(data, name):
            return name
    if b"\0" in data:
        return _wide(data)
    if len(data.translate(None, _CONTROLS)) < 0.99 * len(data):
        return None
    if _decodes(data, "utf-8"):
        return "utf-8"
    declared = _META.search(data[:4096]) if html else None
    if declared:
        name = declared[1].decode().lower()
        name = {"gb2312": "gb18030", "gbk": "gb18030", "iso-8859-1": "cp1252", "latin1": "cp1252"}.get(name, name)
        if name not in ("utf-8", "utf8") and _is_text_codec(name) and _decodes(data, name):
            return name
    return _legacy(data)


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except (UnicodeDecodeError, LookupError, ValueError):
        return False
    return True


def _is_text_codec(name: str) -> bool:
    try:
        return codecs.lookup(name)._is_text_encoding  # not rot13, zlib and the like
    except (LookupError, AttributeError):
        return False


def _wide(data: bytes) -> str | None:
    """UTF-16 without a byte-order mark: zero bytes on one side of most pairs, and nearly none on the other."""
    head = data[: 1 << 16]
    even, odd = head[0::2].count(0), head[1::2].count(0)
    pairs = max(1, len(head) // 2)
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros > 0.3 * pairs and others < 0.02 * pairs and _decodes(data, name):
            return name
    return None


def _legacy(data: bytes) -> str | None:
    """Chinese (GB18030), what a detector says, or Windows-1252, in this order and only where it fits."""
    if _decodes(data, "gb18030"):
        wide = [c for c in data[: 1 << 16].decode("gb18030", "ignore") if not c.isascii()]
        # GB2312 is the common part of GB18030; pairs of accented Latin letters hardly ever fall into it.
        common = sum(1 for c in wide if _encodes(c, "gb2312"))
        if wide and common > 0.9 * len(wide):
            return "gb18030"
    try:
        from resiliparse.parse.encoding import detect_encoding

        found = detect_encoding(data)
    except ImportError:
        found = None
    if found and _is_text_codec(found) and not found.startswith("utf") and _decodes(data, found):
        return found
    return "cp1252" if _decodes(data, "cp1252") else None


def _encodes(character: str, name: str) -> bool:
    try:
        character.encode(name)
    except UnicodeEncodeError:
        return False
    return True


def language(text: str, html: bool = False) -> str:
    """ISO 639-1 code of the main language ('und' when it cannot be told): by script, else by letter statistics."""
    if html and (declared := _DECLARED.search(text[:2000])):
        return declared[1].lower()
    sample = (_TAG.sub(" ", text[:200_000]) if html else text)[:4000]
    letters = len(_LETTER.findall(sample))
    if letters < 3:
        return "und"
    for pattern, code, share in ((_KANA, "ja", 0.1), (_HANGUL, "ko", 0.2), (_HAN, "zh", 0.1)):
        if len(pattern.findall(sample)) > share * letters:
            return code
    if letters < 20:
        return "und"
    try:
        import py3langid
    except ImportError:
        return "und"
    return next((str(code) for code, _ in py3langid.rank(sample) if code in _KNOWN), "und")
