"""Charts as SVG text whose colours are CSS variables, so that one picture serves light and dark pages.

A picture holds panels; a panel has two scales and draws lines, bands, dots and bars in data coordinates. Text stays
text: the page's own fonts draw it, Chinese included, and it can be searched. Drawn by hand because a plotting library
takes longer to import than a short run's report to write; lengths are in pixels of a page 720 wide.
"""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field

WIDTH = 720
INK, SOFT, FAINT = "var(--ink)", "var(--soft)", "var(--line)"
SERIES = tuple(f"var(--c{n})" for n in range(1, 7))
SIZE = 12  # of text

Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, about: int = 5, whole: bool = False) -> list[float]:
    """Round numbers that cover what lies between low and high, about so many; whole ones where asked."""
    if not high > low:
        return [low]
    rough = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 2.5, 5, 10) if power * n >= rough * 0.999)
    if whole:
        step = max(1.0, float(round(step)))
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def words(value: float, step: float) -> str:
    """A tick's number with as many digits as its step needs; very small and very large ones in powers of ten."""
    if value and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.1e}".replace("e-0", "e-").replace("e+0", "e")
    digits = min(max(0, -math.floor(math.log10(step) + 1e-9)), 6) if step else 0
    if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:  # 0.25 needs one more than 0.2
        digits += 1
    return f"{value:,.{digits}f}"


def wide(text: str) -> float:
    """About how wide a text is drawn."""
    return sum(SIZE if unicodedata.east_asian_width(c) in "WF" else SIZE * 0.56 for c in text)


@dataclass
class Picture:
    """An SVG element in the making."""

    name: str
    height: float
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, said: str, anchor: str = "start", colour: str = INK, turn: int = 0) -> None:
        """A text; `turn` degrees around its anchor."""
        turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{turned} style="fill: {colour}">'
            f"{html.escape(said)}</text>"
        )

    def path(self, points: Points, style: str) -> None:
        """A line through pixels."""
        drawn = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="{drawn}" style="{style}"/>')

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled box."""
        drawn = f'x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect {drawn} style="fill: {colour}"/>')

    def legend(self, entries: Sequence[tuple[str, str]]) -> None:
        """Names with their colours, in the upper right."""
        x = WIDTH - 4.0
        for said, colour in reversed(entries):
            x -= wide(said)
            self.text(x, 14, said)
            self.box(x - 18, 7.5, 13, 5, colour)
            x -= 34

    def svg(self) -> str:
        """The element. The page scales it to its column."""
        head = f'<svg class="plot" viewBox="0 0 {WIDTH} {self.height:.0f}" role="img" '
        head += f'aria-label="{html.escape(self.name)}" style="font: {SIZE}px var(--font)">'
        return head + "".join(self.parts) + "</svg>"


@dataclass
class Panel:
    """A rectangle of a picture with its scales.

    `x` and `y` are (low, high) in data, `at` is (left, top, right, bottom) in pixels.
    """

    picture: Picture
    at: tuple[float, float, float, float]
    x: tuple[float, float]
    y: tuple[float, float]

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        left, top, right, bottom = self.at
        across = (x - self.x[0]) / ((self.x[1] - self.x[0]) or 1)
        up = (y - self.y[0]) / ((self.y[1] - self.y[0]) or 1)
        return left + across * (right - left), bottom - up * (bottom - top)

    def grid(self, x: Sequence[float] = (), y: Sequence[float] = (), numbers_below: bool = True) -> None:
        """Faint lines at these numbers, which are written at the edges; the frame's left and lower line."""
        left, top, right, bottom = self.at
        for values, upright in ((x, True), (y, False)):
            step = values[1] - values[0] if len(values) > 1 else 0.0
            for value in values:
                across, up = self.place(value, value)
                ends = [(across, top), (across, bottom)] if upright else [(left, up), (right, up)]
                self.picture.path(ends, f"stroke: {FAINT}; stroke-width: 0.8; fill: none")
                if upright and numbers_below:
                    self.picture.text(across, bottom + 15, words(value, step), "middle", SOFT)
                elif not upright:
                    self.picture.text(left - 6, up + 4, words(value, step), "end", SOFT)
        self.picture.path([(left, top), (left, bottom), (right, bottom)], f"stroke: {FAINT}; fill: none")

    def label(self, below: str = "", beside: str = "") -> None:
        """What the axes show."""
        left, top, right, bottom = self.at
        if below:
            self.picture.text((left + right) / 2, bottom + 31, below, "middle")
        if beside:
            self.picture.text(13, (top + bottom) / 2, beside, "middle", turn=-90)

    def line(self, points: Points, colour: str, dots: float = 0, width: float = 1.8, dash: str = "") -> None:
        """A line through the points, with dots of this radius on them."""
        there = [self.place(*point) for point in points]
        if len(there) > 1:
            dashed = f"; stroke-dasharray: {dash}" if dash else ""
            self.picture.path(
                there, f"stroke: {colour}; stroke-width: {width}; fill: none; stroke-linejoin: round{dashed}"
            )
        if dots:
            for x, y in there:
                self.picture.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{dots}" style="fill: {colour}"/>')

    def band(self, points: Sequence[tuple[float, float, float]], colour: str) -> None:
        """The area between (x, low) and (x, high)."""
        around = [self.place(x, low) for x, low, _ in points] + [self.place(x, high) for x, _, high in points[::-1]]
        self.picture.path(around, f"fill: {colour}; fill-opacity: 0.16; stroke: none")


def bounds(values: Sequence[float], spare: float = 0.06) -> tuple[float, float]:
    """Lowest and highest of the finite values, with a little room around."""
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return 0.0, 1.0
    low, high = min(known), max(known)
    room = (high - low) * spare or abs(high) * 0.1 or 1.0
    return low - room, high + room
