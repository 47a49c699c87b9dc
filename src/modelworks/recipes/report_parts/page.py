"""The page around the sections: HTML built from escaped text only, one style sheet, no scripts, nothing fetched."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any

# Nothing may be loaded or run, whatever a document put into an answer.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"

STYLE = """
:root { color-scheme: light dark; --font: system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC",
  "Hiragino Sans GB", "Microsoft YaHei", "Noto Sans CJK SC", sans-serif;
  --paper: #fbfaf8; --card: #ffffff; --ink: #23262b; --soft: #666d78; --line: #e3e1dc; --accent: #0b63b0;
  --good: #1c7c4a; --warn: #a4580a;
  --c1: #0b63b0; --c2: #d1660f; --c3: #1c8a5c; --c4: #a33b8f; --c5: #8a6d00; --c6: #6a6fb5; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #15171a; --card: #1d2024; --ink: #e5e5e1; --soft: #a0a6ae; --line: #34383e; --accent: #6db3f2;
  --good: #6cc596; --warn: #e8a860;
  --c1: #6db3f2; --c2: #f0a05c; --c3: #6cc596; --c4: #d890c8; --c5: #d3b84f; --c6: #a8aceb; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.55 var(--font); }
main, header, footer { max-width: 60rem; margin: 0 auto; padding: 0 1.25rem; }
header { padding-top: 2.75rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .35rem; letter-spacing: -.015em; text-wrap: balance; }
h2 { font-size: 1.3rem; margin: 3rem 0 .5rem; letter-spacing: -.01em; }
h3 { font-size: 1.02rem; margin: 1.6rem 0 .35rem; }
p { margin: .35rem 0 .8rem; max-width: 46rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .88rem; }
nav { display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: 1rem 0 0; font-size: .92rem; }
a { color: var(--accent); text-decoration: none; } a:hover, a:focus-visible { text-decoration: underline; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem;
  margin: 1.4rem 0 1rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; font-weight: 650; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .86rem; }
.wide { overflow-x: auto; margin: .6rem 0 1.2rem; border: 1px solid var(--line); border-radius: .6rem;
  background: var(--card); }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
caption { text-align: left; padding: .55rem .8rem; caption-side: bottom; }
th, td { padding: .42rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
tbody tr:last-child > * { border-bottom: 0; }
thead th { color: var(--soft); font-weight: 600; white-space: nowrap; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
td .soft { white-space: nowrap; }
tr.sum > * { font-weight: 600; }
figure { margin: .8rem 0 1.2rem; padding: .8rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .6rem; }
figure { overflow-x: auto; } figure svg { display: block; width: 100%; height: auto; }
svg.plot { min-width: 34rem; }
figcaption { padding-top: .4rem; }
code, .mono { font-family: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, monospace; font-size: .88em; }
details { margin: .4rem 0; } summary { cursor: pointer; color: var(--accent); font-size: .92rem; }
pre { overflow-x: auto; background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem;
  font-size: .82rem; margin: .5rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.talk { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem;
  margin: .75rem 0; overflow-wrap: anywhere; }
.talk .q { font-weight: 600; margin: 0 0 .3rem; } .talk .a { margin: 0 0 .4rem; white-space: pre-wrap; }
.talk blockquote { margin: .4rem 0 0; padding: .2rem 0 .2rem .8rem; border-left: 3px solid var(--line);
  color: var(--soft); font-size: .88rem; white-space: pre-wrap; }
.tag { display: inline-block; font-size: .76rem; padding: .05rem .5rem; border-radius: 1rem; border: 1px solid;
  color: var(--soft); margin-right: .3rem; font-weight: 500; }
.tag.good { color: var(--good); } .tag.warn { color: var(--warn); }
footer { padding-top: 2.5rem; padding-bottom: 3rem; color: var(--soft); font-size: .88rem; }
@media print { figure, .wide, .tile, .talk { break-inside: avoid; } nav { display: none; } }
"""


class Html(str):
    """Text that is HTML already; everything else is escaped before it enters a page."""

    __slots__ = ()


def safe(value: Any) -> Html:
    """The value as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(str(value)))


def tag(name: str, *inside: Any, **attributes: str) -> Html:
    """An element; `class_` stands for class."""
    written = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{written}>{''.join(safe(part) for part in inside)}</{name}>")


def join(parts: Iterable[Any]) -> Html:
    """Parts one after another."""
    return Html("".join(safe(part) for part in parts))


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "", sums: int = 0) -> Html:
    """A table that scrolls sideways by itself; columns whose cells are all numbers stand right.

    The last `sums` rows are set apart.
    """
    columns = [[str(row[n]) for row in rows] for n in range(len(head))]
    numeric = [all(map(_is_number, cells)) and any(any(map(str.isdigit, cell)) for cell in cells) for cells in columns]

    def cell(name: str, n: int, value: Any) -> Html:
        return tag(name, value, class_="n") if numeric[n] else tag(name, value)

    lines = []
    for number, row in enumerate(rows):
        cells = join(cell("td", n, value) for n, value in enumerate(row))
        lines.append(tag("tr", cells, class_="sum") if number >= len(rows) - sums else tag("tr", cells))
    inside = [tag("thead", tag("tr", *(cell("th", n, value) for n, value in enumerate(head)))), tag("tbody", *lines)]
    if caption:
        inside.insert(0, tag("caption", caption))
    return tag("div", tag("table", *inside), class_="wide", tabindex="0")


def _is_number(text: str) -> bool:
    if text.startswith("<"):
        return False
    text = text.split("<")[0].replace(",", "").replace("\u2212", "-").strip()
    if text in ("", "\u2013"):
        return True
    return text.lstrip("+-").split(" ")[0].rstrip("%").replace(".", "", 1).isdigit()


def figure(svg: str, caption: str) -> Html:
    """A picture with its words. `svg` is our own drawing."""
    return tag("figure", Html(svg), tag("figcaption", caption)) if svg else Html("")


def tile(value: str, words: str) -> Html:
    """A number that stands out."""
    return tag("div", tag("b", value), tag("span", words), class_="tile")


def section(anchor: str, title: str, *inside: Any) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", title), *inside, id=anchor)


def page(title: str, subtitle: str, sections: Sequence[tuple[str, str, Html]], closing: str) -> str:
    """The whole document; sections are (anchor, heading, content), empty ones are left out."""
    shown = [(anchor, heading, content) for anchor, heading, content in sections if content]
    links = join(tag("a", heading, href=f"#{anchor}") for anchor, heading, _ in shown)
    body = join(
        [
            tag("header", tag("h1", title), tag("div", subtitle, class_="soft"), tag("nav", links)),
            tag("main", *(section(*one) for one in shown)),
            tag("footer", closing),
        ]
    )
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>{body}</body></html>\n'
