"""The figures of a finished demo run, out of its own artefacts, as one table.

    make demo && python bench/demo.py [--run runs/demo] [--publish]

Nothing is measured here: seconds, memory and scores are what the stages wrote when they ran.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import record

PROTOCOL = (
    "Stages' own seconds (installation not counted), peak memory of the process, scores.json with 95 % intervals."
)


def artefacts(run: Path) -> dict[str, dict[str, Any]]:
    """Stage -> artefact.json, in the order of their making."""
    found = [path / "artefact.json" for path in run.iterdir() if path.is_symlink()]
    stages = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(found, key=lambda p: p.stat().st_mtime)]
    return {stage["stage"]: stage for stage in stages}


def value(found: Any) -> str:
    """'0.653 [0.602, 0.701]', or the number alone where it has no interval."""
    if isinstance(found, dict):
        return f"{found['value']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found:.3f}"


def rows(run: Path) -> list[tuple[str, str]]:
    """(what, figure) for the page."""
    made = artefacts(run)
    scores = json.loads((run / "scores" / "scores.json").read_text(encoding="utf-8"))
    seconds = sum(stage["seconds"] for stage in made.values())
    memory = max(stage["peak_memory"] for stage in made.values())
    out = [("all stages", f"{seconds / 60:.1f} min"), ("peak memory", f"{memory / 1e9:.1f} GB")]
    out += [(f"stage {name}", f"{stage['seconds']:.0f} s") for name, stage in made.items() if stage["seconds"] >= 10]
    for row in scores["perplexity"]["rows"]:
        out.append((f"bits per byte, {row['model']}", value(row["bits_per_byte"])))
    for name in ("questions", "preferences"):
        for row in scores[name]["rows"]:
            told = [f"{key.replace('_', ' ')} {value(row[key])}" for key in row if key not in ("model", "margin")]
            out.append((f"{name}, {row['model']}", "; ".join(told)))
    for row in scores["robustness"]["rows"]:
        told = [f"{key} {value(row[key])}" for key in row if key.startswith("correct")]
        out.append((f"{row['typing errors']} mistyped, {row['model']}", "; ".join(told)))
    for suite in ("questions", "preferences", "robustness"):
        for row in scores[suite]["comparisons"]:
            out.append((f"difference, {row['difference']}: {row['measure'].replace('_', ' ')}", value(row["by"])))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=record.ROOT / "runs" / "demo")
    parser.add_argument("--publish", action="store_true", help="keep the result and put it into docs/benchmarks.md")
    options = parser.parse_args()
    if not (options.run / "scores" / "scores.json").is_file():
        raise SystemExit(f"{options.run}: holds no scores; run make demo first.")
    found = rows(options.run)
    head = record.row([record.machine_words(record.machine()), record.commit()])
    lines = [head, *(record.row(pair) for pair in found)]
    print("\n".join(lines))
    if options.publish:
        print(record.write("demo", PROTOCOL, [], dict(found)))
        record.publish("demo", "\n".join(lines))


if __name__ == "__main__":
    main()
