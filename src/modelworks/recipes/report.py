"""One self-contained report.html for a run: data, curves, scores, robustness, samples, lineage, cost, protocol."""

from __future__ import annotations

from pathlib import Path

from ..base import files
from .report_parts import facts, learning, page, results, sections


def write(run_folder: Path, out: Path) -> Path:
    """Write the report on the finished stages of `run_folder` to `out` (a file, or a folder for report.html).

    The page loads nothing and runs no script, and every text in it is escaped: what the documents held cannot act.
    Raises UserError when no stage is finished, DamagedError when a stage's JSON is broken.
    """
    target = out / "report.html" if out.is_dir() else out
    files.write_text(target, text(facts.read(run_folder)))
    return target


def text(run: facts.Run) -> str:
    """The report as HTML."""
    when = "with " + run.machine["processor"] if run.machine.get("processor") else ""
    cores = f", {run.machine['cores']} cores" if run.machine.get("cores") else ""
    subtitle = (
        f"What the recipe made, from what, and what it is worth. Run {when}{cores}." if when else "A run's report."
    )
    parts = [
        ("summary", "Summary", sections.summary(run)),
        ("data", "Data", sections.data(run)),
        ("training", "Training", learning.training(run)),
        ("scores", "Scores", results.scores(run)),
        ("robustness", "Robustness", results.robustness(run)),
        ("samples", "Samples", results.samples(run)),
        ("lineage", "Lineage", sections.graph(run)),
        ("cost", "Cost", sections.cost(run)),
        ("protocol", "Protocol and machine", sections.protocol(run)),
    ]
    return page.page(f"Report: {run.name}", subtitle, parts, "Written by modelworks from the files of this run alone.")
