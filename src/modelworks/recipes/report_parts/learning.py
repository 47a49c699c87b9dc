"""The report's part on training: curves, the gap between training and validation, what they mean, what it wrote."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from modelworks.base.log import duration

from . import plots
from .facts import Run, Stage
from .numbers import number, size
from .page import Html, figure, join, table, tag
from .plots import Points

WINDOWS = 3  # lines of the log that stand for the training loss at an evaluation
NOISE = 0.005  # a change of validation loss below this part of it is no change
SAMPLES = 4  # evaluations whose texts are shown


@dataclass(frozen=True)
class Gap:
    """Validation loss minus training loss at each evaluation, and the evaluation that was best."""

    points: list[tuple[float, float]]
    best: tuple[float, float]
    last: tuple[float, float]
    before: float
    """Validation loss at the evaluation nearest to three quarters of the way."""

    @property
    def rise(self) -> float:
        """By how much validation loss is above its best at the end."""
        return self.last[1] - self.best[1]


def gap(train: Points, validation: Points) -> Gap | None:
    """None where one of the curves is missing. Training loss at an evaluation: the mean of the log's last lines."""
    points = []
    for step, loss in validation:
        seen = [value for at, value in train if at <= step][-WINDOWS:]
        if seen and all(map(math.isfinite, (*seen, loss))):
            points.append((step, loss - sum(seen) / len(seen)))
    known = [(step, loss) for step, loss in validation if math.isfinite(loss)]
    if not points or not known:
        return None
    quarter = min(known, key=lambda point: abs(point[0] - 0.75 * known[-1][0]))
    return Gap(points, min(known, key=lambda point: point[1]), known[-1], quarter[1])


def meaning(found: Gap, stopped: bool = False) -> list[str]:
    """What the gap says, in sentences. `stopped`: the weights kept are those of the best evaluation."""
    end = found.points[-1][1]
    if len(found.points) == 1:
        return [f"Evaluated once, where the gap was {end:.3f}; evaluate more often (evaluate_every) to see it grow."]
    small = NOISE * abs(found.best[1])
    out = []
    if found.rise > small:
        out.append(
            f"Validation was best at step {found.best[0]:,.0f} ({found.best[1]:.3f}) and has risen by {found.rise:.3f} "
            "since: from there on the model learnt its training text by heart."
        )
        out.append(
            "The weights of the best step were kept."
            if stopped
            else "Stop there (patience), or take more data, more dropout or weight decay, or a smaller model."
        )
    elif found.before - found.last[1] > 2 * small:
        out.append("Validation was still falling at the end: more steps would help.")
    else:
        out.append("Validation has levelled off: more steps alone would change little.")
    if end > max(2 * small, 0.02):
        out.append(
            f"At the end the loss is {end:.3f} higher on unseen text than on training text (the gap), "
            f"{found.points[0][1]:.3f} at the first evaluation."
        )
    else:
        out.append("At the end unseen text is predicted as well as training text: no overfitting.")
    return out


def training(run: Run) -> Html:
    """Curves, what they mean, the plan against what came of it, and what the model wrote."""
    return join(_trained(stage) for stage in run.stages if stage.steps)


def _trained(stage: Stage) -> Html:
    train, validation = stage.curve("loss"), stage.curve("validation_loss")
    rate = stage.curve("learning_rate") or stage.curve("matrix_learning_rate")
    parts: list[Html] = [tag("h3", f"{stage.name}: {stage.title}")]
    found = gap(train, validation)
    if (train or validation) and plots.available():
        words = "Loss in nats a predicted token" if stage.settings.get("objective") in ("causal_lm", "chat") else "Loss"
        several = found is not None and len(found.points) > 1
        drawn = plots.learning(
            f"loss of {stage.name}",
            train,
            validation,
            found.points if found and several else [],
            found.best if found and several else None,
            rate,
        )
        parts.append(figure(drawn, f"{words}, means over the steps between two lines of the log."))
    if found:
        parts.append(tag("p", " ".join(meaning(found, stopped="best_step" in stage.metrics))))
    parts.append(_first_and_last(stage, train))
    planned, took = stage.plan.get("seconds"), stage.seconds
    if planned and took:
        memory = stage.plan.get("memory_bytes") or 0
        before = f"{duration(float(planned))}" + (f" and {size(float(memory))}" if memory else "")
        parts.append(tag("p", f"Planned before the start: {before}. It took {duration(took)} in all.", class_="soft"))
    parts.append(_written(stage))
    return join(parts)


def _first_and_last(stage: Stage, train: Points) -> Html:
    rows = [["training loss", number(train[0][1], 4), number(train[-1][1], 4)]] if train else []
    for name in dict.fromkeys(name for line in stage.steps for name in _validation_names(line)):
        points = stage.curve(name)
        rows.append([name.replace("_", " "), number(points[0][1], 4), number(points[-1][1], 4)])
    return table(["", "first", "last"], rows) if rows else Html("")


def _validation_names(line: dict[str, Any]) -> Iterable[str]:
    nested = line.get("validation")
    if isinstance(nested, dict):
        yield from (f"validation_{name}" for name, value in nested.items() if isinstance(value, int | float))
    yield from (n for n, value in line.items() if n.startswith("validation_") and isinstance(value, int | float))


def _written(stage: Stage) -> Html:
    """How the model continued the first of its texts at the first, the last and some evaluations between."""
    said = [line for line in stage.steps if isinstance(line.get("text"), str)]
    said = [line for line in said if line.get("sample") == said[0].get("sample")]
    if not said:
        return Html("")
    picked = sorted({round(n * (len(said) - 1) / max(SAMPLES - 1, 1)) for n in range(SAMPLES)})
    rows = [
        [f"{said[place].get('step', 0):,}", tag("pre", said[place]["text"].strip() or "(nothing)")] for place in picked
    ]
    return join(
        [
            tag("p", "What the model makes of this beginning of a validation text as it learns:"),
            tag("pre", str(said[0].get("prompt", "")).strip()),
            table(["step", "goes on"], rows),
        ]
    )
