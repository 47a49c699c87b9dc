"""The command: every kind of plan, as text and as data, and a sentence for every mistake."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from modelworks.base.errors import UserError
from modelworks.hub import presets
from modelworks.recipes.planning import command, present

from .test_here import machine


@pytest.fixture(autouse=True)
def round_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No measuring here: the constants of a round machine."""
    facts = machine(overhead=1e-4).facts | {"bandwidth": 2e10, "threads": 2}
    monkeypatch.setattr("modelworks.recipes.planning.here.machine", lambda: command.cpu.here.Machine(facts))


def made(**options: Any) -> dict[str, Any]:
    plan = command.plan(command.Options(**options))
    text = present.text(plan)
    assert not re.search(r"\bnan\b|\binf\b", text)
    assert all(row["source"] for row in plan.get("assumptions", []))
    return json.loads(json.dumps(plan)) | {"text": text}


def test_training_here() -> None:
    plan = made(preset="qwen3-nano", tokens="2M", rows=4, max_len=64)
    assert plan["parameters"] == 1_213_824 and plan["step"]["steps"] == 2_000_000 // 256 + 1
    assert plan["cost"]["seconds"] == pytest.approx(plan["step"]["steps"] * plan["step_seconds"])
    assert plan["memory"]["total"] == sum(v for part, v in plan["memory"].items() if part != "total")
    assert "peak memory here" in plan["text"]


def test_training_on_devices() -> None:
    plan = made(preset="qwen3-8b", gpu="H100", gpus=64, tokens="1T", price=2.0)
    assert plan["recommended"]["fits"] and plan["cost"]["dollars"] == pytest.approx(2.0 * plan["cost"]["device_hours"])
    assert {"FSDP 64", "ZeRO-1 64"} <= {row["layout"] for row in plan["layouts"]}
    assert "recommended" in plan["text"] and "6 a parameter and token" in plan["text"]


def test_generating() -> None:
    small, large = (made(preset="qwen3-8b", gpu="h100", batch=batch, context=8192) for batch in (1, 16))
    assert small["token_bound"] == "memory" and large["tokens_a_second"] > 4 * small["tokens_a_second"]
    narrow = made(preset="qwen3-8b", gpu="h100", batch=1, context=8192, quant="int4")
    assert narrow["memory"]["weights"] < 0.4 * small["memory"]["weights"]
    assert narrow["tokens_a_second"] > 2 * small["tokens_a_second"]
    assert made(preset="qwen3-32b", gpu="rtx-4090", context=4096)["devices_needed"] == 4
    long = made(preset="qwen3-32b", gpu="h100", batch=64, context=32768)
    assert long["fits"] and long["devices"] == 16 and long["largest_batch"] >= 64
    assert long["tokens_a_second"] == pytest.approx(64 / long["token_seconds"])
    assert made(preset="qwen3-0.6b", batch=2, context=512)["device"] == "cpu"


def test_an_encoder_reads_and_writes_nothing() -> None:
    names = [name for name in ("bert-base-uncased", "modernbert-base") if name in presets.presets()]
    for name in names:
        plan = made(preset=name, gpu="l4", batch=32, context=512)
        assert plan["kind"] == "reading" and plan["texts_a_second"] == pytest.approx(32 / plan["seconds"])
        assert plan["bound"] == "products" and "cache" not in plan["memory"]


def test_fine_tuning() -> None:
    lora, qlora = (made(preset="qwen3-8b", gpu="rtx-4090", adapter=kind, max_len=2048) for kind in ("lora", "qlora"))
    assert not lora["fits"] or lora["memory"]["total"] > qlora["memory"]["total"]
    assert qlora["fits"] and qlora["trained_parameters"] == lora["trained_parameters"]
    assert made(preset="qwen3-nano", adapter="lora", rank=4)["trained_parameters"] == 4 * 4 * (
        2 * (128 + 128) + 2 * (128 + 64) + 3 * (128 + 320)
    )


def test_a_budget() -> None:
    plan = made(budget="1e21")
    assert plan["recommended"]["parameters"] == pytest.approx(2.8e9, rel=0.02)
    assert len(plan["laws"]) == 5 and len(plan["nearest_presets"]) == 3
    days = made(gpu="h100", gpus=8, days=3.0)
    assert days["flops"] == pytest.approx(989e12 * 0.4 * 8 * 3 * 86400)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "--budget"),
        ({"budget": "1e21", "days": 3.0}, "--budget"),
        ({"budget": "much"}, "--budget much"),
        ({"days": -1.0}, "--days"),
        ({"preset": "qwen3-8"}, "did you mean 'qwen3-8b'"),
        ({"preset": "gpt2", "gpu": "h10"}, "did you mean 'h100'"),
        ({"preset": "gpt2", "gpu": "h100", "gpus": 0}, "--gpus"),
        ({"preset": "gpt2", "tokens": "-3"}, "--tokens"),
        ({"preset": "gpt2", "dtype": "float64"}, "--dtype float64"),
        ({"preset": "gpt2", "gpu": "h100", "adapter": "qlor"}, "did you mean 'qlora'"),
        ({"preset": "gpt2", "gpu": "h100", "adapter": "lora", "rank": 0}, "--rank"),
        ({"preset": "gpt2", "gpu": "h100", "quant": "int44"}, "did you mean 'int4'"),
        ({"preset": "qwen3-32b", "gpu": "t4", "tokens": "1B"}, "no layout fits"),
    ],
)
def test_mistakes(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError) as caught:
        command.plan(command.Options(**options))
    assert says in str(caught.value) and str(caught.value).count(". ") == 0
