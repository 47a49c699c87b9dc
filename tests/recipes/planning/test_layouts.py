"""Layouts: every cut is a whole one, parts of memory follow it, what is recommended fits and is the fastest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelworks.base.errors import UserError
from modelworks.nn import arithmetic
from modelworks.recipes.planning import hardware, layouts, speed, training
from modelworks.recipes.planning.layouts import Layout

from .shapes import GPT3, LLAMA_8B, LLAMA_70B, LLAMA_405B

H100 = hardware.DEVICES["h100"]
MIXTRAL = replace(LLAMA_8B, n_experts=8, n_active=2, vocab_size=32000)


@pytest.mark.parametrize("shape", [LLAMA_8B, MIXTRAL, LLAMA_405B])
def test_every_candidate_is_a_whole_cut(shape: arithmetic.Shape) -> None:
    found = list(layouts.candidates(shape, 8192, 512, 8, 1024))
    assert len(found) > 50
    for layout in found:
        assert layout.devices == 512 and layout.tensor <= 8 and shape.n_heads % layout.tensor == 0
        assert layout.replicas % layout.expert == 0 and max(1, shape.n_experts) % layout.expert == 0
        assert layout.pipeline == 1 or layout.zero <= 1
        assert layout.uneven(shape) <= 1.1
    assert any(layout.expert > 1 for layout in found) == bool(shape.n_experts)
    assert any(layout.context > 1 for layout in found)


def test_a_cut_cuts_what_it_should() -> None:
    whole = layouts.memory(LLAMA_70B, 8192, Layout())
    tensor = layouts.memory(LLAMA_70B, 8192, Layout(tensor=8))
    for part in ("weights", "gradients", "optimiser", "activations"):
        assert getattr(tensor, part) == pytest.approx(getattr(whole, part) / 8)
    context = layouts.memory(LLAMA_70B, 8192, Layout(context=4))
    assert context.weights == whole.weights and context.activations == pytest.approx(whole.activations / 4)
    experts = layouts.memory(MIXTRAL, 8192, Layout(data=8, expert=8))
    routed = 32 * 8 * 3 * 4096 * 14336
    assert experts.optimiser == pytest.approx(12 * (arithmetic.parameters(MIXTRAL) - routed * 7 / 8))
    states = [layouts.memory(LLAMA_70B, 8192, Layout(data=64, zero=stage)).total for stage in range(4)]
    assert states == sorted(states, reverse=True)
    kept = [layouts.memory(LLAMA_70B, 8192, Layout(checkpoint=how)).activations for how in layouts.KEPT]
    assert kept == sorted(kept, reverse=True) and kept[2] < kept[0] / 10


def test_time_adds_up_and_recomputation_costs_a_third() -> None:
    plain = speed.step(LLAMA_8B, 8192, Layout(data=8, zero=3), H100)
    again = speed.step(LLAMA_8B, 8192, Layout(data=8, zero=3, checkpoint="all"), H100)
    assert again.recomputed == pytest.approx(plain.products / 3) and plain.recomputed == 0
    flops = arithmetic.training_flops(LLAMA_8B, 8192) * 8192
    assert plain.products == pytest.approx(flops / (H100.flops * H100.reach))
    assert plain.total == pytest.approx(sum(getattr(plain, part) for part in plain.__slots__))
    slow = replace(H100, network=1e9)
    far = Layout(data=64, zero=3)
    assert speed.step(LLAMA_8B, 8192, far, slow).data_messages > speed.step(LLAMA_8B, 8192, far, H100).data_messages
    deep = speed.step(GPT3, 2048, Layout(pipeline=8, accumulate=8), H100)
    assert speed.step(GPT3, 2048, Layout(pipeline=8, accumulate=64), H100).bubble / 8 < deep.bubble


def test_the_recommended_layout_fits_and_nothing_that_fits_is_faster() -> None:
    plan = training.plan(GPT3, 2048, 300e9, H100, 1024, None, False)
    best = plan["recommended"]
    assert best["fits"] and best["memory"]["total"] <= 80e9
    fastest = min(row["step_seconds"] for row in plan["layouts"] if row["fits"])
    assert best["step_seconds"] <= 1.02 * fastest
    assert {row["zero"] for row in plan["layouts"]} == {0, 1, 2, 3}
    assert not plan["layouts"][0]["fits"], "175B parameters do not fit one device whole"
    assert plan["cost"]["device_hours"] == pytest.approx(plan["cost"]["seconds"] / 3600 * 1024)
    assert plan["cost"]["dollars"] == pytest.approx(plan["cost"]["device_hours"] * H100.price)
    assert 5 < plan["cost"]["days"] < 15  # 34 days on 1,024 A100 (Narayanan et al. 2021), of a third of the speed


def test_what_cannot_fit_is_refused() -> None:
    with pytest.raises(UserError, match=r"no layout fits.*larger devices"):
        training.plan(GPT3, 2048, 300e9, H100, 8, None, False)
    with pytest.raises(UserError, match="power of two"):
        training.plan(LLAMA_8B, 8192, 1e9, H100, 7, 8192, False)
