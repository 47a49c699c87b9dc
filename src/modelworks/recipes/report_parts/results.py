"""The report's parts on scores, robustness and samples: tables with intervals, each with its plot."""

from __future__ import annotations

from typing import Any

from . import plots
from .facts import Run
from .numbers import NONE, Suite, as_value, columns, label, number, suites
from .page import Html, figure, join, table, tag

RATES = ("rate", "noise", "epsilon", "strength")  # columns that say how hard the attack was
SAMPLES = 3  # of each kind
MARKS = (("exact_match", "exact"), ("right", "right"), ("correct", "correct"), ("right_passage", "right passage"))
PANELS = 3  # measures side by side in one picture


def scores(run: Run) -> Html:
    """Every suite but those on robustness."""
    return join(_suite(stage.name, s) for stage in run.stages for s in suites(stage.scores) if not _on_robustness(s))


def robustness(run: Run) -> Html:
    """The suites on robustness: clean and under attack, before hardening and after."""
    return join(_suite(stage.name, s) for stage in run.stages for s in suites(stage.scores) if _on_robustness(s))


def _on_robustness(suite: Suite) -> bool:
    return suite.name.startswith(("robust", "attack"))


def _suite(stage: str, suite: Suite) -> Html:
    title = f"{suite.name} {suite.version}".strip()
    parts: list[Html] = [tag("h3", title), tag("p", suite.protocol, class_="soft") if suite.protocol else Html("")]
    parts += _drawn(f"{stage}-{suite.name}", suite)
    parts.append(_table(suite.rows, "In brackets: the interval that holds the true value in 95 of 100 repetitions."))
    if suite.differences:
        parts.append(_table(suite.differences, "Differences between the same items, with their intervals."))
    return join(parts)


def _table(rows: list[dict[str, Any]], words: str) -> Html:
    keys = columns(rows)
    cells = [[_cell(row.get(key)) for key in keys] for row in rows]
    with_interval = any((value := as_value(row.get(key))) and value.low is not None for row in rows for key in keys)
    return table([key.replace("_", " ") for key in keys], cells, words if with_interval else "") if rows else Html("")


def _cell(value: Any) -> Any:
    found = as_value(value)
    if found is None:
        return NONE if value is None else value if isinstance(value, str) else str(value)
    if found.low is None or found.high is None:
        return number(value if isinstance(value, int) else found.value)
    return join([number(found.value), " ", tag("span", f"[{number(found.low)}, {number(found.high)}]", class_="soft")])


def _drawn(name: str, suite: Suite) -> list[Html]:
    """One picture where a strength was varied, else one for each measure (or one for all, with a single row)."""
    if not plots.available() or not suite.rows:
        return []
    rows = suite.rows
    rate = next((key for key in RATES if all(as_value(row.get(key)) for row in rows)), "")
    measures = [key for key in columns(rows) if key != rate and any(_measured(row.get(key)) for row in rows)]
    if rate:
        return [_varied(f"{name}-{key}", rows, rate, key) for key in measures[:2]]
    if len(rows) == 1:
        inside = {key: _bounds(rows[0][key]) for key in measures}
        shares = {key.replace("_", " "): b for key, b in inside.items() if b and 0 <= b[0] <= 1}
        picture = plots.intervals(name, list(shares), {"share": list(shares.values())}) if shares else ""
        return [figure(picture, "Shares with their intervals.")]
    certain = [key for key in measures if any((b := _bounds(row.get(key))) and b[1] is not None for row in rows)]
    telling = [key for key in measures if len({str(row.get(key)) for row in rows}) > 1]
    drawn = (certain or telling or measures)[:PANELS]
    labels = [label(row) or "?" for row in rows]
    panels = {key.replace("_", " "): [_bounds(row.get(key)) for row in rows] for key in drawn}
    return [figure(plots.intervals(name, labels, panels), "Dots are what was measured, lines their intervals.")]


def _bounds(value: Any) -> plots.Bounds | None:
    found = as_value(value)
    return (found.value, found.low, found.high) if found else None


def _measured(value: Any) -> bool:
    """True for what was measured and not merely counted."""
    return as_value(value) is not None and not isinstance(value, int)


def _varied(name: str, rows: list[dict[str, Any]], rate: str, key: str) -> Html:
    series: dict[str, list[tuple[float, float, float | None, float | None]]] = {}
    for row in rows:
        where, value = as_value(row.get(rate)), as_value(row.get(key))
        if where and value:
            series.setdefault(label(row) or key, []).append((where.value, value.value, value.low, value.high))
    words = key.replace("_", " ")
    return figure(plots.lines(name, dict(series), rate, words), f"{words.capitalize()} as the {rate} grows.")


def samples(run: Run) -> Html:
    """A few answers of the last model, right and wrong of each kind, always the first ones: none is picked by hand."""
    asked = [i for stage in run.stages for i in stage.items if _question(i) and _text(i) and not _attacked(i)]
    last = asked[-1].get("model") if asked else None
    groups: dict[tuple[str, bool], list[dict[str, Any]]] = {}
    for item in asked:
        if item.get("model") == last:
            groups.setdefault((_kind(item), not _first(item, ("correct", "right", "exact_match"))), []).append(item)
    shown = [talk(item) for group in sorted(groups) for item in groups[group][:SAMPLES]]
    words = f"The first {SAMPLES} of each kind{f', by {last}' if last else ''}; every item is in its stage's folder."
    return join([tag("p", words, class_="soft"), *shown]) if shown else Html("")


def _attacked(item: dict[str, Any]) -> bool:
    return str(item.get("suite", "")).startswith(("robust", "attack")) or any(name in item for name in RATES)


def _kind(item: dict[str, Any]) -> str:
    return str(item.get("shown_as") or _answer(item).get("kind") or item.get("kind") or "")


def talk(item: dict[str, Any]) -> Html:
    """A question with its answer, what was expected and the passages that it cites."""
    tags = [tag("span", _kind(item), class_="tag")] if _kind(item) else []
    for key, good in MARKS:
        if item.get(key) in (0, 1, True, False):
            tags.append(
                tag("span", good if item[key] else f"not {good}", class_="tag good" if item[key] else "tag warn")
            )
    parts = [tag("p", _question(item), class_="q"), tag("p", _text(item), class_="a"), join(tags)]
    expected = _first(item, ("expected", "reference", "gold", "target"))
    if expected and expected != _text(item):
        parts.append(tag("div", f"Expected: {expected}", class_="soft"))
    for citation in item.get("citations") or item.get("cited") or _answer(item).get("citations") or []:
        body = citation if isinstance(citation, dict) else {"id": citation}
        title = body.get("title") or body.get("id") or body.get("source") or ""
        parts.append(tag("blockquote", tag("b", title), f" {str(body.get('text', ''))[:400]}"))
    return tag("div", *parts, class_="talk")


def _answer(item: dict[str, Any]) -> dict[str, Any]:
    return item["answer"] if isinstance(item.get("answer"), dict) else {}


def _question(item: dict[str, Any]) -> str:
    return str(_first(item, ("question", "prompt")) or "")


def _text(item: dict[str, Any]) -> str:
    """What the model said: under whichever key, `answer` last, since that may be what was expected."""
    found = _answer(item).get("text") or _first(item, ("said", "text", "prediction", "given", "output"))
    return str(found or (item.get("answer") if isinstance(item.get("answer"), str) else "") or "")


def _first(item: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((item[name] for name in names if item.get(name)), None)
