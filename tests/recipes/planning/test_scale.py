"""Scaling as predicted: what must hold of any machine, and runs that were published on two numbers of devices."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from modelworks.base.errors import UserError
from modelworks.nn.arithmetic import Shape
from modelworks.recipes.planning import command, hardware, present, scale, speed
from modelworks.recipes.planning.layouts import Layout

from .shapes import LLAMA_8B, LLAMA_405B, gpt

A100, H100 = hardware.DEVICES["a100"], hardware.DEVICES["h100"]


def kept(shape: Shape, seq: int, device: hardware.Device, few: Layout, many: Layout) -> float:
    """Tokens a second and device with `many` devices over those with `few`, waiting included."""
    rates = []
    for layout in (few, many):
        waiting = 1 + scale.WAIT * math.log2(max(1.0, layout.devices / device.node))
        seconds = speed.step(shape, seq, layout, device).total * waiting
        rates.append(layout.rows * seq / seconds / layout.devices)
    return rates[1] / rates[0]


PUBLISHED = [
    # torchtitan, benchmarks/llama3_h100_202412: FSDP, 2 rows each: 6,667 on 8 H100 and 6,514 on 128
    (LLAMA_8B, 8192, H100, Layout(data=8, zero=3, checkpoint="half", micro=2),
     Layout(data=128, zero=3, checkpoint="half", micro=2), 6514 / 6667),
    # llm-foundry, scripts/train/benchmarking: tokens a second and device, FSDP, rows of 2,048, on 16 and 64 H100
    (gpt(2048, 16, 24, vocab_size=50_368), 2048, H100, Layout(data=16, zero=3, micro=20),
     Layout(data=64, zero=3, micro=20), 44402 / 46037),
    (gpt(5120, 40, 40, vocab_size=50_368), 2048, H100, Layout(data=16, zero=3, micro=2),
     Layout(data=64, zero=3, micro=2), 4800 / 4767),
    # Dubey et al. 2024, table 4: 430 TFLOP/s a device on 8,192, 400 on 16,384 with the same 16M tokens in a step
    (LLAMA_405B, 8192, H100, Layout(data=64, tensor=8, pipeline=16, zero=1, accumulate=32),
     Layout(data=128, tensor=8, pipeline=16, zero=1, accumulate=16), 400 / 430),
]  # fmt: skip


@pytest.mark.parametrize(("shape", "seq", "device", "few", "many", "wanted"), PUBLISHED)
def test_what_was_published_on_two_numbers_of_devices(
    shape: Shape, seq: int, device: hardware.Device, few: Layout, many: Layout, wanted: float
) -> None:
    found = kept(shape, seq, device, few, many)
    print(f"{many.devices} devices: {found:.3f}, published {wanted:.3f}")
    assert found == pytest.approx(wanted, abs=0.05)


def test_a_ring_costs_its_bytes_and_its_hops() -> None:
    """2 (n - 1) / n of the bytes and one hop a rank, by hand, for gradients that nothing hides."""
    bare = replace(H100, reach=1e9, bandwidth=1e30)  # all but messages takes no time
    layout = Layout(data=16)
    dense = speed.local_parameters(LLAMA_8B, layout)[0]
    hops = 14 * speed.HOP_LINK + 1 * speed.HOP_NETWORK  # two nodes of eight
    by_hand = 2 * (2 * dense * 15 / 16 / (8 * bare.network) + (LLAMA_8B.n_layers + 1) * hops)
    assert speed.step(LLAMA_8B, 8192, layout, bare).data_messages == pytest.approx(by_hand, rel=1e-3)
    assert speed.hops(H100, 8, 1) == pytest.approx(7 * speed.HOP_LINK)
    assert speed.hops(H100, 512, 8) == pytest.approx(511 * speed.HOP_NETWORK)


def test_what_any_scaling_keeps_to(tmp_path: Path) -> None:
    made = command.plan(command.Options(preset="llama3-8b", gpu="h100", gpus=256, scale=True, out=str(tmp_path)))
    for kind in ("strong", "weak"):
        rows = made[kind]
        assert [row["devices"] for row in rows] == [8, 16, 32, 64, 128, 256]
        shares = [row["efficiency"] for row in rows]
        assert shares[0] == 1 and all(0 < after <= before * 1.01 for before, after in itertools.pairwise(shares))
        rates = [row["tokens_a_second"] for row in rows]
        assert rates == sorted(rates), "more devices are never slower in all"
    assert made["weak"][-1]["efficiency"] >= made["strong"][-1]["efficiency"]
    assert {row["rows"] for row in made["strong"]} == {made["step"]["rows"]}
    assert all(row["rows"] == made["rows_a_device"] * row["devices"] for row in made["weak"])
    # on a slower network nothing gets better
    slow = scale.scale(LLAMA_8B, 8192, replace(H100, network=H100.network / 8), None, 256, False)
    assert slow["strong"][-1]["efficiency"] < made["strong"][-1]["efficiency"]
    assert json.loads((tmp_path / "scale.json").read_text())["weak"] == made["weak"]
    assert (tmp_path / "scale.png").stat().st_size > 10_000
    text = present.text(made)
    assert "strong scaling on h100" in text and "waiting for the slowest device" in text


def test_scaling_that_cannot_be_told() -> None:
    with pytest.raises(UserError, match="scaling is told from 8 devices on"):
        scale.scale(LLAMA_8B, 8192, H100, None, 4, False)
    with pytest.raises(UserError, match="no layout of up to 16"):
        scale.scale(LLAMA_405B, 8192, H100, None, 16, False)
    with pytest.raises(UserError, match="name the devices with --gpu"):
        command.plan(command.Options(preset="llama3-8b", scale=True))
