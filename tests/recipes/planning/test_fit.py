"""A law fitted from runs: it finds the law that made them, says how sure it is, and refuses too few."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from modelworks.base import files
from modelworks.base.errors import UserError
from modelworks.recipes.planning import fit
from modelworks.recipes.planning.scaling import Parametric

pytest.importorskip("scipy")
LAW = Parametric(E=1.9, A=300.0, B=900.0, alpha=0.33, beta=0.31)


def runs(noise: float = 0.0) -> list[fit.Point]:
    draw = np.random.default_rng(3)
    return [
        fit.Point(f"{n:.0e}-{d:.0e}", n, d, LAW.loss(n, d) * float(np.exp(noise * draw.normal())))
        for n in (1e6, 4e6, 2e7, 1e8) for d in (2e7, 1e8, 8e8, 4e9)
    ]  # fmt: skip


def test_it_finds_the_law_that_made_the_runs() -> None:
    found = fit.fit(runs())
    for name in LAW.__slots__:
        assert getattr(found, name) == pytest.approx(getattr(LAW, name), rel=0.02), name


def test_one_wild_run_does_not_move_it() -> None:
    points = runs()
    points[5] = fit.Point("wild", points[5].parameters, points[5].tokens, points[5].loss * 1.5)
    found = fit.fit(points)
    assert found.best(1e20)[0] == pytest.approx(LAW.best(1e20)[0], rel=0.1)


def test_intervals_hold_the_truth_and_grow_with_distance() -> None:
    points = runs(noise=0.003)
    law = fit.fit(points)
    sure = fit.intervals(points, law, [1e18, 1e22], draws=40)
    wide = [row["loss_interval"][1] - row["loss_interval"][0] for row in sure["budgets"]]
    assert wide[0] < wide[1]
    for row in sure["budgets"]:
        low, high = row["loss_interval"]
        slack = 0.5 * (high - low)
        assert low - slack < LAW.loss(*LAW.best(row["flops"])) < high + slack


def folder(root: Path, point: fit.Point, **metrics: float) -> Path:
    place = root / point.name
    place.mkdir(parents=True)
    facts = {"parameters": point.parameters, "tokens": point.tokens, "validation_loss": point.loss} | metrics
    files.write_json(place / "artefact.json", {"metrics": {k: v for k, v in facts.items() if v is not None}})
    return place


def test_from_folders_to_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    folders = [str(folder(tmp_path / "runs", point)) for point in runs()]
    result = fit.from_runs(folders, tmp_path / "out")
    assert result["largest_misfit"] < 0.01 and len(result["runs"]) == 16
    assert (tmp_path / "out" / "law.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "out" / "law.svg").read_text().count("<path") > 5
    assert json.loads((tmp_path / "out" / "law.json").read_text())["numbers"]["alpha"] == pytest.approx(0.33, rel=0.02)


def test_training_losses_stand_in_for_validation(tmp_path: Path) -> None:
    place = folder(tmp_path, runs()[0], validation_loss=None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="a loss"):
        fit.read(place)
    lines = [{"step": n, "loss": 9.0 if n < 95 else 3.0} for n in range(100)]
    (place / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert fit.read(place).loss == 3.0


def test_too_few_runs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="too few"):
        fit.check(runs()[:5])
    with pytest.raises(UserError, match="too few"):
        fit.check([point for point in runs() if point.parameters == 1e6] * 2)
    with pytest.raises(UserError, match=r"artefact\.json"):
        fit.read(tmp_path)
