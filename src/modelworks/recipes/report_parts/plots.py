"""Plots as inline SVG whose colours are CSS variables, so that one picture serves light and dark pages.

Text stays text (`svg.fonttype: none`): the page's own fonts draw it, Chinese included, and it can be searched.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

# Stand-in colours that matplotlib writes and `_svg` replaces: ink, faint lines, then the series.
INK, FAINT = "#010203", "#040506"
SERIES = ("#0a0001", "#0a0002", "#0a0003", "#0a0004", "#0a0005", "#0a0006")
COLOURS = {INK: "var(--ink)", FAINT: "var(--line)"} | {c: f"var(--c{n})" for n, c in enumerate(SERIES, 1)}
WIDTH = 7.2  # inches; the page scales the picture to its column

Points = Sequence[tuple[float, float]]
Bounds = tuple[float, float | None, float | None]  # value, low, high


def available() -> bool:
    """True when matplotlib is installed; without it the report has tables only."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def _figure(
    name: str, height: float, draw: Callable[[Any, Any], None], rows: int = 1, cols: int = 1, **grid: Any
) -> str:
    """Draw on fresh axes and return the SVG. `name` keeps identifiers apart from those of other pictures.

    `draw` gets the figure and its axes: one, or a flat list where there are several.
    """
    import matplotlib
    from matplotlib.figure import Figure

    style = {
        "svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9, "font.family": "sans-serif",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": FAINT, "xtick.color": INK, "ytick.color": INK,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": FAINT,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False, "lines.linewidth": 1.6,
    }  # fmt: skip
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # measured only; the page's font draws it
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        axes = figure.subplots(rows, cols, sharex=cols == 1, sharey=rows == 1, squeeze=False, **grid).ravel()
        draw(figure, axes if len(axes) > 1 else axes[0])
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _svg(out.getvalue(), name)


def _svg(text: str, name: str) -> str:
    """Strip what only a file needs, put CSS variables for the stand-in colours, free the fonts and the size."""
    text = text[text.index("<svg") :]
    text = re.sub(r"(?s)<metadata>.*?</metadata>", "", text)
    for colour, variable in COLOURS.items():
        text = text.replace(colour, variable)
    text = re.sub(r"font: ([^;\"]*?) ?([\d.]+px) [^;\"]*", r"font: \1 \2 var(--font)", text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="#|url\(#)', rf"\1{name}-", text)
    return re.sub(
        r'<svg ([^>]*?)height="[^"]*" ?([^>]*?)width="[^"]*"', r'<svg class="plot" \1\2 role="img"', text, count=1
    )


def ledger(name: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Stacked bars: documents kept, left out and added by each step; rows are (step, kept, left, made)."""

    def draw(figure: Any, axes: Any) -> None:
        places = range(len(rows), 0, -1)
        kept, left = [row[1] for row in rows], [row[2] for row in rows]
        old, made = [row[1] - row[3] for row in rows], [row[3] for row in rows]
        axes.barh(places, old, height=0.62, color=SERIES[0], label="kept")
        if any(made):
            axes.barh(places, made, left=old, height=0.62, color=SERIES[2], label="added")
        axes.barh(places, left, left=kept, height=0.62, color=SERIES[1], label="left out")
        axes.set_yticks(list(places), [row[0] for row in rows])
        axes.locator_params(axis="x", integer=True)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.set_xlabel("documents")
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        figure.legend(loc="outside upper right", ncols=3)

    return _figure(name, 0.9 + 0.32 * len(rows), draw)


def curves(name: str, train: Points, validation: Points, rate: Points, x_label: str) -> str:
    """Loss in training and validation over the steps, with the learning rate under it where it is known."""

    def draw(figure: Any, axes: Any) -> None:
        top = axes[0] if rate else axes
        if train:
            top.plot(*zip(*train), color=SERIES[0], label="training")
        if validation:
            top.plot(*zip(*validation), color=SERIES[1], marker="o", markersize=3.5, label="validation")
        top.set_ylabel("loss")
        if rate:
            axes[1].plot(*zip(*rate), color=SERIES[2])
            axes[1].set_ylabel("rate")
            axes[1].set_ylim(bottom=0)
        (axes[1] if rate else axes).set_xlabel(x_label)
        (axes[1] if rate else axes).xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper right", ncols=2)

    return _figure(name, 3.3, draw, 2, height_ratios=[2.6, 1]) if rate else _figure(name, 2.6, draw)


def intervals(name: str, labels: Sequence[str], measures: dict[str, Sequence[Bounds | None]]) -> str:
    """A panel for each measure, in it a dot with its interval for each label; None leaves a place empty."""

    def draw(figure: Any, axes: Any) -> None:
        for panel, (words, bounds) in zip(axes if len(measures) > 1 else [axes], measures.items()):
            _dots(panel, words, bounds)
        first = axes[0] if len(measures) > 1 else axes
        first.set_yticks(range(len(labels), 0, -1), labels)
        first.set_ylim(0.4, len(labels) + 0.6)

    return _figure(name, 0.8 + 0.3 * len(labels), draw, 1, len(measures))


def _dots(axes: Any, words: str, bounds: Sequence[Bounds | None]) -> None:
    for place, bound in zip(range(len(bounds), 0, -1), bounds):
        if bound is None:
            continue
        value, low, high = bound
        if low is not None and high is not None:
            axes.plot([low, high], [place, place], color=SERIES[0], linewidth=2.4, solid_capstyle="round")
        axes.plot([value], [place], marker="o", markersize=6, color=SERIES[0])
    numbers = [number for bound in bounds if bound for number in bound if number is not None]
    if numbers and min(numbers) < 0 < max(numbers):
        axes.axvline(0, color=INK, linewidth=0.8)
    elif numbers and min(numbers) >= 0 and max(numbers) <= 1:
        axes.set_xlim(-0.03, 1.03)
    axes.set_xlabel(words)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def lines(
    name: str, series: dict[str, Sequence[tuple[float, float, float | None, float | None]]], x: str, y: str
) -> str:
    """One line with a band for each series of (x, value, low, high)."""

    def draw(figure: Any, axes: Any) -> None:
        for number, (label, points) in enumerate(series.items()):
            colour = SERIES[number % len(SERIES)]
            ordered = sorted(points)
            place = [p[0] for p in ordered]
            axes.plot(place, [p[1] for p in ordered], color=colour, marker="o", markersize=4, label=label)
            low, high = [p[2] for p in ordered], [p[3] for p in ordered]
            if None not in low and None not in high:
                axes.fill_between(place, low, high, color=colour, alpha=0.16, linewidth=0)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        figure.legend(loc="outside upper right", ncols=min(4, len(series)))

    return _figure(name, 2.9, draw)


def bars(name: str, rows: Sequence[tuple[str, float]], x_label: str) -> str:
    """Plain horizontal bars with their numbers; rows are (label, value)."""

    def draw(figure: Any, axes: Any) -> None:
        places = range(len(rows), 0, -1)
        drawn = axes.barh(places, [row[1] for row in rows], height=0.6, color=SERIES[0])
        axes.bar_label(drawn, [f"{row[1]:,.1f}" for row in rows], padding=4, color=INK, fontsize=8)
        axes.set_yticks(list(places), [row[0] for row in rows])
        axes.margins(x=0.12)
        axes.set_xlabel(x_label)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)

    return _figure(name, 0.8 + 0.28 * len(rows), draw)
