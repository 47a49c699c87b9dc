"""The report's charts, drawn by matplotlib: one function a kind, from plain numbers to an SVG element.

The colours in it are CSS variables, so that one picture serves light and dark pages. Text stays text
(`svg.fonttype: none`): the page's own fonts draw it, Chinese included, and it can be searched.
"""

from __future__ import annotations

import hashlib
import html
import io
import math
import re
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Stand-in colours that matplotlib writes and `_svg` replaces: ink, soft, faint lines, then the series.
INK, SOFT, FAINT = "#010203", "#030405", "#040506"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
COLOURS = {INK: "var(--ink)", SOFT: "var(--soft)", FAINT: "var(--line)"}
COLOURS |= {colour: f"var(--c{number})" for number, colour in enumerate(SERIES, 1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif", "text.parse_math": False,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
    "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
    "figure.constrained_layout.w_pad": 0.1,  # inches: numbers under neighbouring panels stay apart
}  # fmt: skip
WIDTH = 7.2  # inches; the page scales the picture to its column
LABEL = 34  # letters of a label that are shown; a Chinese one counts for two

Points = Sequence[tuple[float, float]]
Bounds = tuple[float, float | None, float | None]  # value, low, high
Banded = Sequence[tuple[float, float, float | None, float | None]]  # x, value, low, high


def available() -> bool:
    """True when matplotlib is installed; without it the report has tables only."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _figure(name: str, height: float, draw: Callable[[Any, Any], None], **grid: Any) -> str:
    """Draw on fresh axes and return the SVG, which is called `name`; `grid` is that of `Figure.subplots`.

    `draw` gets the figure and its axes in a flat list.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # measured only; the page's font draws it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure, figure.subplots(squeeze=False, **grid).ravel())
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _svg(out.getvalue(), name)


def _svg(text: str, name: str) -> str:
    """Strip what only a file needs, put CSS variables for the stand-in colours, free the fonts and the size."""
    apart = "p" + hashlib.sha256(name.encode()).hexdigest()[:8]  # identifiers differ from those of other pictures

    def freed(found: re.Match[str]) -> str:
        tag = found[0]
        for colour, variable in COLOURS.items():
            tag = tag.replace(colour, variable)
        tag = re.sub(r"font: ([^;\"]*?) ?([\d.]+px) [^;\"]*", r"font: \1 \2 var(--font)", tag)
        return re.sub(r'(\bid="|href="#|url\(#)', rf"\1{apart}-", tag)

    text = re.sub(r"(?s)<metadata>.*?</metadata>", "", text[text.index("<svg") :])
    text = re.sub(r"<[^>]*>", freed, text)  # tags only: words stay as they are
    head, rest = text.split(">", 1)
    head = re.sub(r' (width|height)="[^"]*"', "", head)
    return f'{head} class="plot" role="img" aria-label="{html.escape(name)}">{rest}'


def _cut(label: str) -> str:
    """As much of a label as leaves room for the picture."""
    room = LABEL
    for place, letter in enumerate(label):
        room -= 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        if room < 0:
            return label[:place] + "\u2026"
    return label


def _thousands(axis: Any) -> None:
    """Whole numbers with commas on an axis."""
    axis.get_major_locator().set_params(integer=True)
    axis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _rows(axes: Any, labels: Sequence[str]) -> Sequence[int]:
    """Name the rows of a chart from top to bottom; returns their places."""
    places = range(len(labels), 0, -1)
    axes.set_yticks(list(places), [_cut(label) for label in labels])
    axes.set_ylim(0.4, len(labels) + 0.6)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    return places


def ledger(name: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Stacked bars: documents kept, left out and added by each step; rows are (step, kept, left, made)."""

    def draw(figure: Any, axes: Any) -> None:
        panel = axes[0]
        places = _rows(panel, [row[0] for row in rows])
        kept, left = [row[1] for row in rows], [row[2] for row in rows]
        old, made = [row[1] - row[3] for row in rows], [row[3] for row in rows]
        panel.barh(places, old, height=0.62, color=SERIES[0], label="kept")
        if any(made):
            panel.barh(places, made, left=old, height=0.62, color=SERIES[2], label="added")
        panel.barh(places, left, left=kept, height=0.62, color=SERIES[1], label="left out")
        _thousands(panel.xaxis)
        panel.set_xlabel("documents")
        figure.legend(loc="outside upper right", ncols=3)

    return _figure(name, 0.9 + 0.32 * len(rows), draw)


def learning(
    name: str, train: Points, validation: Points, gap: Points = (), best: tuple[float, float] | None = None,
    rate: Points = (),
) -> str:  # fmt: skip
    """Loss over the steps with the best evaluation marked; under it the gap between the two, and the learning rate."""
    heights = [2.4] + ([1.1] if len(gap) > 1 else []) + ([0.8] if rate else [])  # inches

    def draw(figure: Any, axes: Any) -> None:
        _losses(axes[0], train, validation, best)
        if len(gap) > 1:
            _gap(axes[1], gap)
        if rate:
            axes[-1].plot(*zip(*rate), color=SERIES[2])
            axes[-1].set_ylabel("rate")
            axes[-1].set_ylim(bottom=0)
        axes[-1].set_xlabel("step")
        _thousands(axes[-1].xaxis)
        figure.align_ylabels(axes)
        figure.legend(loc="outside upper right", ncols=3)

    return _figure(name, 0.7 + sum(heights), draw, nrows=len(heights), height_ratios=heights, sharex=True)


def _losses(axes: Any, train: Points, validation: Points, best: tuple[float, float] | None) -> None:
    if train:
        axes.plot(*zip(*train), color=SERIES[0], label="training")
    if validation:
        axes.plot(*zip(*validation), color=SERIES[1], marker="o", markersize=3.5, label="validation")
    axes.set_ylabel("loss")
    if best is None:
        return
    axes.axvline(best[0], color=SOFT, linewidth=1, linestyle=(0, (3, 3)))
    axes.plot(*best, color=SERIES[1], marker="o", markersize=8, markerfacecolor="none")
    left, right = axes.get_xlim()
    ahead = best[0] < (left + right) / 2  # room on the right
    axes.annotate(
        f"best {best[1]:.3f} at step {best[0]:,.0f}", (best[0], 1), xycoords=("data", "axes fraction"),
        xytext=(6 if ahead else -6, -2), textcoords="offset points", ha="left" if ahead else "right", va="top",
    )  # fmt: skip


def _gap(axes: Any, gap: Points) -> None:
    steps, values = zip(*gap)
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.fill_between(steps, 0, values, color=SERIES[3], alpha=0.16, linewidth=0)
    axes.plot(steps, values, color=SERIES[3], marker="o", markersize=3, label="gap: validation minus training")
    axes.set_ylabel("gap")


def intervals(name: str, labels: Sequence[str], measures: dict[str, Sequence[Bounds | None]]) -> str:
    """A panel for each measure, in it a dot with its interval for each label; None leaves a place empty."""

    def draw(figure: Any, axes: Any) -> None:
        for panel, (words, bounds) in zip(axes, measures.items()):
            _dots(panel, words, bounds, _rows(panel, labels))

    return _figure(name, 0.8 + 0.3 * len(labels), draw, ncols=max(len(measures), 1), sharey=True)


def _dots(axes: Any, words: str, bounds: Sequence[Bounds | None], places: Sequence[int]) -> None:
    for place, bound in zip(places, bounds):
        if bound is None:
            continue
        value, low, high = bound
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2.4, solid_capstyle="round")
        axes.plot([value], [place], marker="o", markersize=6, color=SERIES[0])
    numbers = [n for bound in bounds if bound for n in bound if n is not None and math.isfinite(n)]
    if numbers and min(numbers) < 0 < max(numbers):
        axes.axvline(0, color=INK, linewidth=0.8)
    elif numbers and min(numbers) >= 0 and max(numbers) <= 1:
        axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(words)


def lines(name: str, series: dict[str, Banded], x: str, y: str) -> str:
    """One line with a band for each series of (x, value, low, high)."""

    def draw(figure: Any, axes: Any) -> None:
        for number, (label, points) in enumerate(series.items()):
            colour = SERIES[number % len(SERIES)]
            place, value, low, high = zip(*sorted(points, key=lambda point: point[0]))
            axes[0].plot(place, value, color=colour, marker="o", markersize=4, label=_cut(label))
            if None not in low and None not in high:
                axes[0].fill_between(place, low, high, color=colour, alpha=0.16, linewidth=0)
        axes[0].set_xlabel(x)
        axes[0].set_ylabel(y)
        figure.legend(loc="outside upper right", ncols=min(4, len(series)))

    return _figure(name, 2.9, draw)


def bars(name: str, rows: Sequence[tuple[str, float]], x_label: str) -> str:
    """Plain horizontal bars with their numbers; rows are (label, value)."""

    def draw(figure: Any, axes: Any) -> None:
        places = _rows(axes[0], [row[0] for row in rows])
        drawn = axes[0].barh(places, [row[1] for row in rows], height=0.6, color=SERIES[0])
        axes[0].bar_label(drawn, [f"{row[1]:,.1f}" for row in rows], padding=4, color=INK, fontsize=8)
        axes[0].margins(x=0.12)
        axes[0].set_xlabel(x_label)

    return _figure(name, 0.8 + 0.28 * len(rows), draw)
