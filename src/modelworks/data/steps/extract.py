"""extract: the main text of HTML pages, and light cleaning of Markdown, rst and docstrings; other text passes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from modelworks.base.config import Settings
from modelworks.base.errors import UserError

from ..corpus import Account, Document
from ..decode import language

_ROLE = re.compile(r":(?:[a-z]+:)?[a-z]+:`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LITERAL = re.compile(r"``([^`\n]+)``")
_RST_LINE = re.compile(
    r"^(?:\.\. (?:_[^\n]*:|[\w:-]+::[^\n]*|\|[^\n]*)|[=~^\"'`#*+-]{3,}|[|+][=|+ -]{3,}[|+]|\s+:[\w-]+:(?: [^\n]*)?)$"
)
_FRONT = re.compile(r"\A---\n.*?\n(?:---|\.\.\.)\n", re.S)
_COMMENT = re.compile(r"<!--.*?-->", re.S)
_IMAGE = re.compile(r"!\[([^\]]*)\]\([^)\s]*(?:\s+\"[^\"]*\")?\)")
_LINK = re.compile(r"\[([^\]]+)\]\((?:[^()\s]|\([^()]*\))*(?:\s+\"[^\"]*\")?\)|\[([^\]]+)\]\[[^\]]*\]")
_MARKS = re.compile(r"(?<![\w*])(\*\*|__|\*)(?=\S)(.+?)(?<=\S)\1(?![\w*])")
_FENCE = re.compile(r"^\s*(?:```|~~~)")
_HTML_TAG = re.compile(r"</?[a-zA-Z][^<>\n]{0,300}>")


class Config(Settings):
    main_content: bool = True
    """Keep the main text of a page only; false keeps menus, sidebars and footers as well."""
    links: bool = False
    """Keep the addresses of links in pages."""


def apply(documents: Iterator[Document], config: Config, ledger: Account) -> Iterator[Document]:
    """Yield every document with plain text; a page without any text is left out, and counted.

    A page's language is told again from its text. Raises UserError when a page comes and resiliparse is missing.
    """
    for document in documents:
        before, kind = document.bytes, document.meta.get("format", "text")
        if kind == "html":
            document.text, title = _page(document.text, config)
            if title:
                document.meta["title"] = title
            if not document.text.strip():
                document.text, lost = "", before
                ledger.change(lost, document)
                ledger.leave(document, "page without text")
                continue
            document.meta["language"] = language(document.text)
        elif kind == "markdown":
            document.text = _markdown(document.text)
        elif kind == "rst":
            document.text = _rst(document.text)
        elif kind == "docstring":
            document.text = _ROLE.sub(r"\1", document.text)
        else:
            yield document
            continue
        document.meta["format"] = "text"
        ledger.change(before, document)
        yield document


def _page(text: str, config: Config) -> tuple[str, str]:
    """Main text and title of an HTML page; the whole text where no main part is found."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
        from resiliparse.parse.html import HTMLTree
    except ImportError:
        raise UserError("HTML pages need resiliparse; install it with pip install 'modelworks[data]'.") from None
    tree = HTMLTree.parse(text)
    options = {"links": config.links, "alt_texts": False, "comments": False, "post_meta": False}
    out = extract_plain_text(tree, main_content=config.main_content, **options)
    if config.main_content and len(out.split()) < 10:
        whole = extract_plain_text(tree, main_content=False, **options)
        out = whole if len(whole) > len(out) else out
    return out, (tree.title or "").strip()


def _markdown(text: str) -> str:
    """Markdown as plain text: marks, links' addresses and comments go, words and code stay."""
    text = _COMMENT.sub("", _FRONT.sub("", text.replace("\r\n", "\n")))
    out, code = [], False
    for line in text.split("\n"):
        if _FENCE.match(line):
            code = not code
            continue
        if not code and not line.startswith("    "):
            line = _LINK.sub(lambda m: m[1] or m[2], _IMAGE.sub(r"\1", line))
            line = _MARKS.sub(r"\2", _HTML_TAG.sub("", re.sub(r"^\s{0,3}#{1,6}\s+(.*?)\s*#*\s*$", r"\1", line)))
            if re.fullmatch(r"\s*(?:[-*_=]\s*){3,}|\s*\|?(?:\s*:?-+:?\s*\|)+(?:\s*:?-+:?\s*)?", line):
                continue  # rules, underlines of headings, the line below a table's head
        out.append(line)
    return "\n".join(out)


def _rst(text: str) -> str:
    """reStructuredText as plain text: underlines, directives, targets and roles go."""
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if not _RST_LINE.match(line)]
    return _LITERAL.sub(r"\1", _ROLE.sub(r"\1", "\n".join(lines)))
