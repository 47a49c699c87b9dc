"""Numbers as people read them, and scores brought into one shape whatever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

NONE = "\u2013"
WORDS = ("model", "stage", "name", "baseline", "system", "who")  # columns that say whose row it is


@dataclass(frozen=True)
class Value:
    """A measured number, with its interval where there is one."""

    value: float
    low: float | None = None
    high: float | None = None

    def text(self, digits: int = 3) -> str:
        """'0.853' or '0.853 [0.81, 0.89]'."""
        if self.low is None or self.high is None:
            return number(self.value, digits)
        return f"{number(self.value, digits)} [{number(self.low, digits)}, {number(self.high, digits)}]"


@dataclass(frozen=True)
class Suite:
    """What one suite found: rows of a table, who is in them, differences, and how it was done."""

    name: str
    version: str
    protocol: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    differences: list[dict[str, Any]] = field(default_factory=list)


def as_value(value: Any) -> Value | None:
    """A number or `{value, low, high}` as a Value; None for anything else."""
    if isinstance(value, dict) and isinstance(value.get("value"), int | float):
        return Value(float(value["value"]), value.get("low"), value.get("high"))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Value(float(value))
    return None


def number(value: Any, digits: int = 3) -> str:
    """Thousands apart; whole numbers whole; small ones in powers of ten."""
    if value is None:
        return NONE
    if not isinstance(value, int | float) or isinstance(value, bool):
        return str(value)
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 1000):
        return f"{int(value):,}"
    if value != value or abs(value) == float("inf"):
        return str(value)
    if value and abs(value) < 10**-digits:
        return f"{value:.1e}"
    return f"{value:,.{digits if abs(value) < 100 else 1}f}"


def size(count: float) -> str:
    """Bytes in the unit that fits."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000 or unit == "GB":
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return ""


def suites(scores: dict[str, Any]) -> list[Suite]:
    """The suites of a scores.json: `{suite: {...}}`, or `{model: {suite: {...}}}` with one row a model."""
    out: dict[str, Suite] = {}
    for who, name, body in _bodies(scores):
        suite = out.setdefault(name, Suite(name, str(body.get("version", "")), _protocol(body.get("protocol"))))
        rows = body.get("rows") or body.get("table") or []
        plain = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        if not plain and isinstance(body.get("metrics"), dict) and body["metrics"]:
            plain = [dict(body["metrics"])]
        suite.rows.extend({"model": who, **row} if who and not _label_key(row) else row for row in plain)
        suite.differences.extend(_differences(body.get("comparisons") or body.get("differences")))
    return list(out.values())


def _bodies(scores: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(model or '', suite, body) of every result."""
    for name, body in scores.items():
        if not isinstance(body, dict):
            continue
        if "metrics" in body or "rows" in body or "table" in body:
            yield "", name, body
            continue
        for inner, result in body.items():
            if isinstance(result, dict) and ("metrics" in result or "rows" in result or "table" in result):
                yield name, inner, result


def _differences(found: Any) -> list[dict[str, Any]]:
    """Differences as rows, from a list of rows or from `{what: interval}`."""
    if isinstance(found, list):
        return [row for row in found if isinstance(row, dict)]
    if not isinstance(found, dict):
        return []
    out = []
    for name, body in found.items():
        if as_value(body):
            out.append({"difference": name, "by": body})
        elif isinstance(body, dict):
            out.append({"difference": name, **body})
    return out


def _protocol(found: Any) -> str:
    if isinstance(found, dict):
        return "; ".join(f"{name}: {value}" for name, value in found.items())
    return str(found or "")


def _label_key(row: dict[str, Any]) -> str:
    return next((word for word in WORDS if isinstance(row.get(word), str)), "")


def label(row: dict[str, Any]) -> str:
    """Whose row it is: the text cells of the row."""
    words = [str(value) for value in row.values() if isinstance(value, str)]
    return " \u00b7 ".join(words)


def columns(rows: list[dict[str, Any]]) -> list[str]:
    """All keys of the rows, texts first, in the order of their coming."""
    keys = list(dict.fromkeys(key for row in rows for key in row))
    return sorted(keys, key=lambda key: not any(isinstance(row.get(key), str) for row in rows))
