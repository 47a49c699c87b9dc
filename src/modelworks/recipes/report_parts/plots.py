"""The report's charts: one function a kind, from plain numbers to an SVG element."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .draw import FAINT, INK, SERIES, SOFT, WIDTH, Panel, Picture, Points, bounds, ticks, wide

Bounds = tuple[float, float | None, float | None]  # value, low, high
Banded = Sequence[tuple[float, float, float | None, float | None]]  # x, value, low, high
ROW = 25.0  # height of a bar with its distance to the next
LABELS = 230.0  # widest place for words beside bars


def _beside(labels: Sequence[str]) -> float:
    """Room for the longest label."""
    return min(max((wide(text) for text in labels), default=0.0) + 16, LABELS)


def _cut(text: str) -> str:
    """As much of a label as fits."""
    while wide(text) > LABELS - 12 and len(text) > 2:
        text = text[:-2] + "\u2026"
    return text


def ledger(name: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Stacked bars: documents kept, left out and added by each step; rows are (step, kept, left, made)."""
    left, top = _beside([row[0] for row in rows]), 28.0
    picture = Picture(name, top + ROW * len(rows) + 40)
    most = max((row[1] + row[2] for row in rows), default=1.0) or 1.0
    panel = Panel(picture, (left, top, WIDTH - 24, top + ROW * len(rows)), (0, most * 1.02), (0, 1))
    panel.grid(x=ticks(0, most, whole=True))
    panel.label("documents")
    for number, (step, kept, gone, made) in enumerate(rows):
        y, at = top + ROW * number + 4, 0.0
        picture.text(left - 8, y + 13, _cut(step), "end")
        for amount, colour in ((kept - made, SERIES[0]), (made, SERIES[2]), (gone, SERIES[1])):
            start, end = panel.place(at, 0)[0], panel.place(at + amount, 0)[0]
            if amount:
                picture.box(start, y, end - start, ROW - 8, colour)
            at += amount
    added = [("added", SERIES[2])] if any(row[3] for row in rows) else []
    picture.legend([("kept", SERIES[0]), *added, ("left out", SERIES[1])])
    return picture.svg()


def learning(
    name: str, train: Points, validation: Points, gap: Points = (), best: tuple[float, float] | None = None,
    rate: Points = (),
) -> str:  # fmt: skip
    """Loss over the steps with the best evaluation marked; under it the gap between the two, and the learning rate."""
    shown = [(180.0, "loss")] + ([(80.0, "gap")] if len(gap) > 1 else []) + ([(56.0, "rate")] if rate else [])
    picture = Picture(name, 28 + sum(height + 14 for height, _ in shown) + 30)
    steps = [x for points in (train, validation, rate) for x, _ in points]
    span = (min(steps, default=0.0), max(steps, default=1.0))
    across, top = ticks(*span, about=7, whole=True), 28.0
    for number, (height, what) in enumerate(shown):
        values = {"loss": [*train, *validation], "gap": [*gap, (0, 0)], "rate": [*rate, (0, 0)]}[what]
        panel = Panel(picture, (62, top, WIDTH - 24, top + height), span, bounds([y for _, y in values]))
        last = number == len(shown) - 1
        panel.grid(across, ticks(*panel.y, about=max(2, int(height / 32))), numbers_below=last)
        panel.label("step" if last else "", what)
        if what == "loss":
            _losses(panel, train, validation, best)
        elif what == "gap":
            panel.line([(span[0], 0.0), (span[1], 0.0)], INK, width=0.8)
            panel.band([(x, min(y, 0.0), max(y, 0.0)) for x, y in gap], SERIES[3])
            panel.line(gap, SERIES[3], dots=2.2)
        else:
            panel.line(rate, SERIES[2])
        top += height + 14
    names = [("training", SERIES[0])] if train else []
    names += [("validation", SERIES[1])] if validation else []
    picture.legend(names + ([("gap: validation minus training", SERIES[3])] if len(gap) > 1 else []))
    return picture.svg()


def _losses(panel: Panel, train: Points, validation: Points, best: tuple[float, float] | None) -> None:
    panel.line(train, SERIES[0])
    panel.line(validation, SERIES[1], dots=2.8)
    if best is None:
        return
    x, y = panel.place(*best)
    top, bottom, right = panel.at[1], panel.at[3], panel.at[2]
    panel.picture.path([(x, top), (x, bottom)], f"stroke: {SOFT}; stroke-dasharray: 3 3; fill: none")
    panel.picture.parts.append(
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5.5" style="fill: none; stroke: {SERIES[1]}; stroke-width: 1.6"/>'
    )
    said = f"best {best[1]:.3f} at step {best[0]:,.0f}"
    ahead = x + 10 + wide(said) < right
    panel.picture.text(x + 8 if ahead else x - 8, top + 12, said, "start" if ahead else "end")


def intervals(name: str, labels: Sequence[str], measures: dict[str, Sequence[Bounds | None]]) -> str:
    """A panel for each measure, in it a dot with its interval for each label; None leaves a place empty."""
    left, top, height = _beside(labels), 12.0, ROW * len(labels)
    picture = Picture(name, top + height + 40)
    width = (WIDTH - 24 - left - 22 * (len(measures) - 1)) / max(len(measures), 1)
    for number, (words, found) in enumerate(measures.items()):
        start = left + number * (width + 22)
        numbers = [n for bound in found if bound for n in bound if n is not None and math.isfinite(n)]
        span = (-0.03, 1.03) if numbers and min(numbers) >= 0 and max(numbers) <= 1 else bounds(numbers, 0.1)
        panel = Panel(picture, (start, top, start + width, top + height), span, (0, len(labels)))
        panel.grid(x=ticks(*span, about=max(2, int(width / 75))))
        panel.label(words)
        if span[0] < 0 < span[1] and span[0] != -0.03:
            panel.line([(0, 0), (0, len(labels))], INK, width=0.8)
        for place, bound in enumerate(found):
            if bound is None:
                continue
            y = len(labels) - place - 0.5
            value, low, high = bound
            if low is not None and high is not None:
                panel.line([(low, y), (high, y)], SERIES[0], width=2.6)
            panel.line([(value, y)], SERIES[0], dots=4)
    for place, text in enumerate(labels):
        picture.text(left - 8, top + ROW * (place + 0.5) + 4, _cut(text), "end")
    return picture.svg()


def lines(name: str, series: dict[str, Banded], x: str, y: str) -> str:
    """One line with a band for each series of (x, value, low, high)."""
    picture = Picture(name, 280)
    values = [n for points in series.values() for _, *rest in points for n in rest if n is not None]
    places = [p[0] for points in series.values() for p in points]
    panel = Panel(picture, (62, 28, WIDTH - 24, 240), bounds(places, 0.02), bounds(values))
    panel.grid(ticks(*panel.x, about=7), ticks(*panel.y, about=6))
    panel.label(x, y)
    entries = []
    for number, (label, points) in enumerate(series.items()):
        colour, ordered = SERIES[number % len(SERIES)], sorted(points, key=lambda point: point[0])
        area = [(at, low, high) for at, _, low, high in ordered if low is not None and high is not None]
        if len(area) == len(ordered):
            panel.band(area, colour)
        panel.line([(at, value) for at, value, *_ in ordered], colour, dots=3)
        entries.append((label, colour))
    picture.legend(entries)
    return picture.svg()


def bars(name: str, rows: Sequence[tuple[str, float]], x_label: str) -> str:
    """Plain horizontal bars with their numbers; rows are (label, value)."""
    left, top = _beside([row[0] for row in rows]), 6.0
    picture = Picture(name, top + ROW * len(rows) + 40)
    most = max((row[1] for row in rows), default=1.0) or 1.0
    panel = Panel(picture, (left, top, WIDTH - 24, top + ROW * len(rows)), (0, most * 1.14), (0, 1))
    panel.grid(x=ticks(0, most * 1.14, about=6))
    panel.label(x_label)
    for number, (label, value) in enumerate(rows):
        y, end = top + ROW * number + 4, panel.place(value, 0)[0]
        picture.text(left - 8, y + 13, _cut(label), "end")
        picture.box(left, y, end - left, ROW - 8, SERIES[0])
        picture.text(end + 5, y + 13, f"{value:,.1f}")
    picture.path([(left, top), (left, top + ROW * len(rows))], f"stroke: {FAINT}; fill: none")
    return picture.svg()
