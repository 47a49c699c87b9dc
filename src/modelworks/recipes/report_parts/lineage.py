"""The graph of stages as SVG: who was made from what, drawn in rows from top to bottom."""

from __future__ import annotations

import html

from .facts import Run, Stage

BOX_W, BOX_H, GAP_X, GAP_Y = 190, 44, 24, 22  # pixels


def depth(run: Run) -> dict[str, int]:
    """Row of each stage: one more than the deepest of those it was made from."""
    out: dict[str, int] = {}
    for stage in run.stages:  # makers come first
        out[stage.name] = max((out.get(source.name, 0) + 1 for source in run.sources(stage)), default=0)
    return out


def draw(run: Run) -> str:
    """SVG of the graph; '' for a run of one stage."""
    if len(run.stages) < 2:
        return ""
    row = depth(run)
    beside: dict[int, list[str]] = {}
    for stage in run.stages:
        beside.setdefault(row[stage.name], []).append(stage.name)
    widest = max(map(len, beside.values()))
    width, height = widest * (BOX_W + GAP_X) - GAP_X + 4, len(beside) * (BOX_H + GAP_Y) - GAP_Y + 4
    places = {}
    for line, names in beside.items():
        indent = (widest - len(names)) * (BOX_W + GAP_X) // 2 + 2
        places |= {name: (indent + n * (BOX_W + GAP_X), line * (BOX_H + GAP_Y) + 2) for n, name in enumerate(names)}
    parts = [_edge(places[source.name], places[stage.name]) for stage in run.stages for source in _direct(run, stage)]
    parts += [_box(stage, *places[stage.name]) for stage in run.stages]
    size = f'viewBox="0 0 {width} {height}" style="max-width:{width}px;margin:auto"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{"".join(parts)}</svg>'


def _direct(run: Run, stage: Stage) -> list[Stage]:
    """Sources that are not sources of another source already: the rest would only cross the picture."""
    sources = run.sources(stage)
    covered = {one.name for source in sources for one in run.lineage(source)[:-1]}
    return [source for source in sources if source.name not in covered]


def _edge(start: tuple[int, int], end: tuple[int, int]) -> str:
    x1, y1, x2, y2 = start[0] + BOX_W // 2, start[1] + BOX_H, end[0] + BOX_W // 2, end[1]
    bend = max((y2 - y1) // 2, 8)
    path = f"M{x1} {y1}C{x1} {y1 + bend} {x2} {y2 - bend} {x2} {y2}"
    return f'<path d="{path}" fill="none" stroke="var(--soft)" stroke-width="1.3"/>'


def _box(stage: Stage, x: int, y: int) -> str:
    name, below = (html.escape(text[:30]) for text in (stage.name, f"{stage.title} {stage.digest}"))
    return (
        f'<rect x="{x}" y="{y}" width="{BOX_W}" height="{BOX_H}" rx="8" fill="var(--card)" stroke="var(--c1)"/>'
        f'<text x="{x + 10}" y="{y + 19}" fill="var(--ink)" font-size="13" font-weight="600">{name}</text>'
        f'<text x="{x + 10}" y="{y + 35}" fill="var(--soft)" font-size="11">{below}</text>'
    )
