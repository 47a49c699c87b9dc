"""A scaling law from one's own runs: L = E + A / N^a + B / D^b by a robust fit, with intervals, and its plot.

As Hoffmann et al. (2022, section 3.3): Huber's loss (delta 1e-3) between the logarithms of predicted and measured
losses, L-BFGS from a grid of starts; intervals by drawing the runs again (bootstrap, 100 times, seed 1).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...base import files
from ...base.errors import UserError
from .present import count
from .scaling import Parametric

DELTA = 1e-3
FEWEST = 6
"""Runs that a fit of five numbers needs at least."""
DRAWS = 100


@dataclass(frozen=True, slots=True)
class Point:
    """A finished run: its parameters, the tokens it learned from, its loss in nats a token."""

    name: str
    parameters: float
    tokens: float
    loss: float


def read(folder: Path) -> Point:
    """The point that a train stage's folder gives: validation loss, or the mean of the last training losses.

    Raises UserError where artefact.json is missing or does not say parameters, tokens and a loss.
    """
    path = folder / "artefact.json"
    if not path.is_file():
        raise UserError(f"{folder}: has no artefact.json; name the folders of train stages (runs/NAME/STAGE).")
    metrics = files.read_json(path).get("metrics", {})
    loss = metrics.get("validation_loss")
    if loss is None:
        loss = _last_losses(folder / "metrics.jsonl")
    missing = [name for name, value in (("parameters", metrics.get("parameters")), ("tokens", metrics.get("tokens")),
                                        ("a loss", loss)) if not value]  # fmt: skip
    if missing:
        raise UserError(f"{path}: does not say {' and '.join(missing)}; a train stage that evaluates does.")
    return Point(folder.name, float(metrics["parameters"]), float(metrics["tokens"]), float(loss))


def _last_losses(path: Path) -> float | None:
    if not path.is_file():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    losses = [line["loss"] for line in lines if "loss" in line]
    last = losses[-max(1, len(losses) // 20) :]
    return float(sum(last) / len(last)) if last else None


def check(points: Sequence[Point]) -> None:
    """Raises UserError where the runs cannot tell the five numbers apart."""
    sizes, budgets = {p.parameters for p in points}, {p.tokens for p in points}
    if len(points) < FEWEST or len(sizes) < 3 or len(budgets) < 3:
        raise UserError(
            f"--fit: {len(points)} runs (sizes: {len(sizes)}, budgets: {len(budgets)}) are too few for a law of five "
            f"numbers; give {FEWEST} or more runs, of 3 sizes and 3 budgets at least."
        )


def fit(points: Sequence[Point], starts: Sequence[Sequence[float]] | None = None) -> Parametric:
    """The law nearest to the points. `starts` are (log A, log B, log E, a, b) to begin from, a grid where None."""
    from scipy.optimize import minimize

    n, d, losses = (np.log([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))

    def misfit(x: np.ndarray) -> tuple[float, np.ndarray]:
        parts = np.stack([x[0] - x[3] * n, x[1] - x[4] * d, np.full_like(n, x[2])])
        top = parts.max(0)
        shares = np.exp(parts - top)
        total = shares.sum(0)
        wrong = top + np.log(total) - losses
        shares /= total
        small = np.abs(wrong) <= DELTA
        value = np.where(small, 0.5 * wrong**2, DELTA * (np.abs(wrong) - 0.5 * DELTA)).sum()
        slope = np.where(small, wrong, DELTA * np.sign(wrong)) * shares
        gradient = np.array(
            [slope[0].sum(), slope[1].sum(), slope[2].sum(), -(slope[0] * n).sum(), -(slope[1] * d).sum()]
        )
        # in units of delta squared, so that the optimiser does not stop early (Besiroglu et al. 2024)
        return float(value) / DELTA**2, gradient / DELTA**2

    if starts is None:
        lowest = math.log(min(p.loss for p in points))
        starts = [
            (a * n.mean() + lowest + at, b * d.mean() + lowest + at, lowest + e, a, b)
            for a in (0.25, 0.5) for b in (0.25, 0.5) for e in (-0.7, -0.1) for at in (-1.0,)
        ]  # fmt: skip
    bounds = [(None, None), (None, None), (-20, None), (0.01, 3), (0.01, 3)]
    options = {"maxiter": 2000, "maxfun": 6000, "ftol": 1e-15, "gtol": 1e-10}
    found = [minimize(misfit, np.array(s), jac=True, method="L-BFGS-B", bounds=bounds, options=options) for s in starts]
    a, b, e, alpha, beta = min(found, key=lambda f: f.fun).x
    return Parametric(E=math.exp(e), A=math.exp(a), B=math.exp(b), alpha=float(alpha), beta=float(beta))


def intervals(points: Sequence[Point], law: Parametric, flops: Sequence[float], draws: int = DRAWS) -> dict[str, Any]:
    """90 % intervals of the law's numbers, and of best sizes and losses at budgets of `flops`."""
    draw = np.random.default_rng(1)
    start = [(math.log(law.A), math.log(law.B), math.log(law.E), law.alpha, law.beta)]
    laws = []
    for _ in range(draws):
        chosen = [points[i] for i in draw.integers(len(points), size=len(points))]
        if len({p.parameters for p in chosen}) >= 2 and len({p.tokens for p in chosen}) >= 2:
            laws.append(fit(chosen, start))

    def between(values: list[float]) -> list[float]:
        return [float(v) for v in np.quantile(values, (0.05, 0.95))]

    out: dict[str, Any] = {name: between([getattr(one, name) for one in laws]) for name in Parametric.__slots__}
    out["budgets"] = []
    for budget in flops:
        size, tokens = law.best(budget)
        best = [one.best(budget) for one in laws]
        row: dict[str, Any] = {"flops": budget, "parameters": size, "tokens": tokens, "loss": law.loss(size, tokens)}
        row["parameters_interval"] = between([n for n, _ in best])
        row["loss_interval"] = between([one.loss(*pair) for one, pair in zip(laws, best, strict=True)])
        out["budgets"].append(row)
    return out


def from_runs(folders: Sequence[str], out: Path | None) -> dict[str, Any]:
    """Read runs, fit, extrapolate to a hundred times the largest budget; write law.json and law.png, .svg to `out`.

    Raises UserError where the runs are too few or say too little.
    """
    points = [read(Path(folder)) for folder in folders]
    check(points)
    law = fit(points)
    largest = max(6 * p.parameters * p.tokens for p in points)
    sure = intervals(points, law, [largest * factor for factor in (1, 10, 100)])
    rows = [
        {"run": p.name, "parameters": p.parameters, "tokens": p.tokens, "loss": p.loss,
         "by_the_law": law.loss(p.parameters, p.tokens)} for p in points
    ]  # fmt: skip
    worst = max(abs(row["by_the_law"] / row["loss"] - 1) for row in rows)  # type: ignore[operator]
    numbers = {name: getattr(law, name) for name in Parametric.__slots__}
    result: dict[str, Any] = {
        "law": "L = E + A / N^alpha + B / D^beta",
        "numbers": numbers,
        "intervals_90": {name: sure[name] for name in numbers},
        "largest_misfit": worst,
        "runs": rows,
        "budgets": sure["budgets"],
        "note": _note(points, law),
    }
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        files.write_json(out / "law.json", result)
        result["plots"] = draw(points, law, sure["budgets"], out)
    return result


def _note(points: Sequence[Point], law: Parametric) -> str:
    note = "the last two budgets lie outside of what was measured; trust them as far as their intervals go"
    if 0.01 * min(point.loss for point in points) > law.E:
        note += "; these runs do not show yet where the loss ends (E is about 0), so it is told too low far ahead"
    return note


def draw(points: Sequence[Point], law: Parametric, budgets: Sequence[dict[str, Any]], out: Path) -> list[str]:
    """law.png and law.svg: loss over FLOPs, a line a size, the runs, and the best of each budget with its interval."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "law", "font.size": 9}):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        low = min(6 * p.parameters * p.tokens for p in points)
        reach = np.geomspace(low / 2, budgets[-1]["flops"], 80)
        for number, size in enumerate(sorted({p.parameters for p in points})):
            mine = [p for p in points if p.parameters == size]
            colour = f"C{number % 10}"
            axes.plot(reach, [law.loss(size, c / 6 / size) for c in reach], color=colour, linewidth=0.9, alpha=0.7)
            axes.scatter(
                [6 * p.parameters * p.tokens for p in mine], [p.loss for p in mine], s=18, color=colour,
                label=f"{count(size)} parameters",
            )  # fmt: skip
        axes.plot(reach, [law.loss(*law.best(c)) for c in reach], color="black", linewidth=1.4, label="best size")
        axes.errorbar(
            [b["flops"] for b in budgets], [b["loss"] for b in budgets],
            yerr=np.array([[max(0.0, b["loss"] - b["loss_interval"][0]), max(0.0, b["loss_interval"][1] - b["loss"])]
                           for b in budgets]).T,
            fmt="s", color="black", markersize=4, capsize=3, label="extrapolated, 90 %",
        )  # fmt: skip
        top = max(p.loss for p in points)
        axes.set(xscale="log", xlabel="training FLOPs (6 N D)", ylabel="loss, nats a token", ylim=(None, top * 1.05))
        axes.legend(frameon=False, fontsize=8)
        names = []
        for kind in ("png", "svg"):
            path = out / f"law.{kind}"
            figure.savefig(path, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            names.append(str(path))
    return names
