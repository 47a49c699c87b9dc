"""Money and samples of a training: prices from the environment, known boards, what stands in the artefact."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from modelworks.base.energy import Meter
from modelworks.base.errors import UserError
from modelworks.recipes import costs, front

from . import tiny


@pytest.fixture(autouse=True)
def no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (costs.HOUR, costs.KWH):
        monkeypatch.delenv(name, raising=False)


def meter(tmp_path: Path, watt_hours: float) -> Meter:
    made = Meter(root=tmp_path)
    made.before = watt_hours * 3600
    return made


def test_electricity_of_an_own_machine_and_rent_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    guess = costs.taken(meter(tmp_path, 2000.0), 1800.0, 2)
    assert guess["energy_wh"] == pytest.approx(2000, abs=1) and guess["money"] == pytest.approx(0.6, abs=0.01)
    assert "guess" in guess["money_from"] and "10 W" in guess["energy_from"]
    monkeypatch.setenv(costs.KWH, "0.1")
    assert costs.taken(meter(tmp_path, 2000.0), 1800.0, 2)["money"] == pytest.approx(0.2, abs=0.01)
    monkeypatch.setenv(costs.HOUR, "3")
    assert costs.taken(meter(tmp_path, 2000.0), 1800.0, 2)["money"] == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("board", "name"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("Something else", None),
    ],
)
def test_a_known_board_has_a_list_price(board: str, name: str | None) -> None:
    found = costs.rent("cuda", board)
    assert (found is None) == (name is None)
    if found and name:
        assert found[1].startswith(f"{name} at ") and found[0] > 0
    assert costs.rent("cpu", board) is None


@pytest.mark.parametrize("said", ["cheap", "-1", "nan", "inf"])
def test_a_price_that_is_none_is_told_before_the_training(
    said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(costs.HOUR, said)
    with pytest.raises(UserError, match="is not a price"):
        costs.rent("cpu")


def test_a_recipe_keeps_what_its_training_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples of validation text, energy and money, and the TensorBoard files, in the artefact and in the report."""
    monkeypatch.setenv("MODELWORKS_THREADS", "1")
    recipe, documents = tiny.write(tmp_path, tiny.RECIPE.replace("track: []", "track: [tensorboard]"))
    runner = front.run(str(recipe), [f"data={documents}"], out=tmp_path / "run")
    model = runner.folders["model"]
    facts = json.loads((model / "artefact.json").read_text())
    assert facts["metrics"]["energy_wh"] > 0 and facts["metrics"]["money"] >= 0
    assert facts["cost"]["energy_from"] and facts["cost"]["money_from"]
    records = [json.loads(line) for line in (model / "metrics.jsonl").read_text().splitlines()]
    said = [record for record in records if "sample" in record]
    assert [(r["step"], r["sample"]) for r in said] == [(s, f"sample_{n}") for s in (6, 12) for n in (1, 2)]
    texts = {path.read_text() for path in documents.iterdir()}
    assert all(any(record["prompt"] in text for text in texts) for record in said), "prompts are not of the documents"
    assert list((model / "tensorboard").glob("events.*"))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What the model makes of this beginning" in page and "dollars" in page
