"""What every measurement here carries: machine, commit, each single run; and its row in docs/benchmarks.md."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"


def commit() -> str:
    """Short commit, with a + when the tree has changes that no commit holds."""
    run = subprocess.run(["git", "rev-parse", "--short=8", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        return "unknown"
    changed = subprocess.run(["git", "status", "--porcelain", "-uno"], cwd=ROOT, capture_output=True, text=True).stdout
    return run.stdout.strip() + ("+" if changed.strip() else "")


def machine() -> dict[str, Any]:
    """The machine's facts as base.device tells them."""
    from modelworks.base.device import machine

    return machine()


def machine_words(facts: dict[str, Any]) -> str:
    return f"{facts['processor']}, {facts['cores']} cores"


def spread(values: Sequence[float], digits: int = 2) -> str:
    """'1.62 (1.60 - 1.65)': median, smallest and largest."""
    middle = f"{statistics.median(values):.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.{digits}f} - {max(values):.{digits}f})"


def write(name: str, protocol: str, runs: list[dict[str, Any]], summary: dict[str, Any]) -> Path:
    """Keep a measurement as JSON under bench/results/ and return its file."""
    found = {
        "bench": name,
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "protocol": protocol,
        "summary": summary,
        "runs": runs,
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{name}-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}.json"
    path.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def row(cells: Sequence[object]) -> str:
    return "| " + " | ".join(str(cell) for cell in cells) + " |"


def publish(marker: str, line: str) -> None:
    """Append a row to the table that stands between the page's markers of that name."""
    _between(marker, lambda table: f"{table}{line}\n")


def publish_table(marker: str, lines: Sequence[str]) -> None:
    """Put a whole table between the page's markers of that name, in the place of the one that stands there."""
    _between(marker, lambda table: "\n".join(lines) + "\n")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """A table's lines; all columns but the first to the right."""
    return [row(head), "|---|" + "---:|" * (len(head) - 1), *map(row, rows)]


def _between(marker: str, change: Callable[[str], str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    pattern = rf"(?s)(<!-- {marker} -->\n)(.*?)(<!-- end of {marker} -->)"
    new, count = re.subn(pattern, lambda found: f"{found[1]}{change(found[2])}{found[3]}", text)
    if count != 1:
        raise SystemExit(f"{PAGE}: has no table marked '{marker}'.")
    PAGE.write_text(new, encoding="utf-8")
