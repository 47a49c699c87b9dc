"""The gate: measured values against thresholds, for a build that must stop when a model got worse.

thresholds.yaml        questions.right_passage: {at_least: 0.85}
                       questions.unsupported:   {at_most: 0}
                       perplexity.bits_per_byte: {at_most: 1.6, bound: high}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelworks.base import config as settings
from modelworks.base import files
from modelworks.base.config import Settings
from modelworks.base.errors import DamagedError, UserError, nearest


class Threshold(Settings):
    """What one metric has to reach."""

    at_least: float | None = None
    """Lowest value that passes."""
    at_most: float | None = None
    """Highest value that passes."""
    bound: Literal["value", "low", "high"] = "value"
    """What is compared: the measured value, or an end of its interval (then it must hold with confidence)."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """One threshold and whether it is held."""

    metric: str
    found: float
    wanted: str
    passed: bool


def check(scores: Mapping[str, Mapping[str, Any]], path: Path) -> list[Verdict]:
    """Hold `scores` (suite -> metric -> number or interval) against the thresholds in the YAML file at `path`.

    Raises UserError for a file that is no such thing, a metric that was not measured, or a threshold without limit.
    """
    data, lines = settings.load_yaml(path)
    known = {f"{suite}.{name}": value for suite, metrics in scores.items() for name, value in metrics.items()}
    verdicts = []
    for metric, limits in data.items():
        threshold = settings.build(Threshold, limits, str(path), lines, (str(metric),))
        if threshold.at_least is None and threshold.at_most is None:
            raise UserError(f"{path}: '{metric}' has no limit; give it at_least or at_most.")
        if metric not in known:
            raise UserError(f"{path}: '{metric}' was not measured{nearest(str(metric), list(known))}.")
        verdicts.append(_held(str(metric), known[metric], threshold, path))
    return verdicts


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The metrics of every suite that wrote its result into `folder` (`evaluate.context.Result.write`).

    Raises UserError when there is none, DamagedError naming a file that is no result.
    """
    scores = {}
    for path in sorted(folder.glob("*.json")):
        data = files.read_json(path)
        if isinstance(data, dict) and {"suite", "metrics"} <= data.keys():
            if not isinstance(data["metrics"], dict):
                raise DamagedError(f"{path}: is not a suite's result; evaluate again.")
            scores[str(data["suite"])] = data["metrics"]
    if not scores:
        raise UserError(f"{folder}: holds no suite's result; evaluate a model first.")
    return scores


def exit_status(verdicts: list[Verdict]) -> int:
    """0 when every threshold is held, else 1."""
    return 0 if all(verdict.passed for verdict in verdicts) else 1


def _held(metric: str, measured: Any, threshold: Threshold, path: Path) -> Verdict:
    if isinstance(measured, Mapping):
        found = float(measured[threshold.bound])
    elif threshold.bound == "value" or hasattr(measured, threshold.bound):
        found = float(getattr(measured, threshold.bound, measured))
    else:
        raise UserError(f"{path}: '{metric}' has no interval, so its {threshold.bound} end cannot be compared.")
    wanted, passed = [], True
    if threshold.at_least is not None:
        wanted.append(f"at least {threshold.at_least:g}")
        passed &= found >= threshold.at_least
    if threshold.at_most is not None:
        wanted.append(f"at most {threshold.at_most:g}")
        passed &= found <= threshold.at_most
    return Verdict(metric, found, " and ".join(wanted), passed)
