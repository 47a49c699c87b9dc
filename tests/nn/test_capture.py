"""Looking in changes nothing, writing in changes what follows and nothing before: for every family."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from modelworks.base.errors import UserError
from modelworks.models import gpt2, qwen3
from modelworks.nn import capture as looking
from modelworks.nn.capture import attention_weights, capture, points, replace

from ..contracts.kinds import Case, build, cases, gap, inputs, ours, scramble, twin

TOKENS = torch.randint(1, 61, (2, 9), generator=torch.Generator().manual_seed(5))


def hooks(model: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.fixture
def small() -> Any:
    config = qwen3.Config(
        vocab_size=61, d_model=32, n_layers=3, n_heads=4, n_kv_heads=2, d_head=16, d_ff=48, max_len=64
    )
    model = qwen3.build(config)
    scramble(model)
    return model.eval()


@pytest.mark.parametrize("case", cases(), ids=str)
def test_every_family(case: Case) -> None:
    model, given = build(case), inputs(case)
    with torch.no_grad():
        before = ours(model, given)
        with capture(model) as seen:
            during = ours(model, given)
        names = [name for name in points(model) if name in seen]
        assert set(names) == set(seen) and hooks(model) == 0
        assert names == points(model) or case.name == "llava"  # which looks at its eye's last block but one
        assert all(torch.equal(before[key], during[key]) for key in before)  # looking changed no bit
        assert all(torch.equal(before[key], ours(model, given)[key]) for key in before)
        weights = attention_weights(model, **given)
        assert hooks(model) == 0 and {f"{name}.mixed" for name in weights} == {n for n in names if n.endswith(".mixed")}
        for name, shares in weights.items():
            values = (
                seen[f"{name}.values"].float().repeat_interleave(shares.shape[1] // seen[f"{name}.values"].shape[1], 1)
            )
            assert gap(shares @ values, seen[f"{name}.mixed"]) <= 1e-5
            assert shares.ge(0).all() and shares.sum(-1).le(1 + 1e-5).all()
        middle = next(name for name in names if name.endswith("blocks.1.input") and f"{name[:-5]}output" in names)
        with replace(model, {middle: lambda x: x + 0.5 * torch.randn_like(x)}), capture(model) as patched:
            after = ours(model, given)
        own = [name for name in names if name.startswith(middle.removesuffix("blocks.1.input"))]
        same = {name for name in names if torch.equal(seen[name], patched[name])}
        assert set(own[: own.index(middle)]) <= same and not same & {middle, own[-1]}
        assert any(not torch.equal(before[key], after[key]) for key in before) and hooks(model) == 0


def test_names_in_the_order_of_the_pass(small: Any) -> None:
    one = ["input", "attention.queries", "attention.keys", "attention.values", "attention.mixed", "attention"]
    blocks = [f"blocks.{n}.{part}" for n in range(3) for part in [*one, "feedforward", "output"]]
    assert points(small) == ["embeddings", *blocks, "final"]


def test_what_is_seen_is_what_flows(small: Any) -> None:
    with capture(small) as seen, torch.no_grad():
        output = small(TOKENS)
    assert torch.equal(seen["embeddings"], small.stem.tokens.weight[TOKENS])
    assert torch.equal(seen["final"], output.hidden)
    for n in range(3):
        block = f"blocks.{n}."
        assert torch.equal(
            seen[f"{block}output"], seen[f"{block}input"] + seen[f"{block}attention"] + seen[f"{block}feedforward"]
        )
        assert torch.equal(seen[f"{block}input"], seen["embeddings" if n == 0 else f"blocks.{n - 1}.output"])
    assert seen["blocks.0.attention.queries"].shape == (2, 4, 9, 16)
    assert seen["blocks.0.attention.keys"].shape == seen["blocks.0.attention.values"].shape == (2, 2, 9, 16)


def test_shares_by_hand_in_float64(small: Any) -> None:
    with capture(small) as seen, torch.no_grad():
        small(TOKENS)
    shares = attention_weights(small, TOKENS, layers=[1])
    assert list(shares) == ["blocks.1.attention"]
    queries, keys = (seen[f"blocks.1.attention.{part}"].double() for part in ("queries", "keys"))
    scores = queries @ keys.repeat_interleave(2, 1).mT / 4.0
    scores = scores.masked_fill(torch.ones(9, 9, dtype=torch.bool).triu(1), float("-inf"))
    assert gap(shares["blocks.1.attention"], scores.softmax(-1)) <= 1e-6


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_shares_are_those_of_transformers(name: str, tmp_path: Any) -> None:
    from modelworks.hub import directory

    case = next(case for case in cases("decoder") if case.name == name)
    theirs = twin(case)
    theirs.save_pretrained(tmp_path)
    model = directory.load(tmp_path).model
    with torch.no_grad():
        want = theirs(TOKENS, output_attentions=True, output_hidden_states=True)
        with capture(model) as seen:
            model(TOKENS)
    got = attention_weights(model, TOKENS)
    for n, shares in enumerate(want.attentions):
        assert gap(got[f"blocks.{n}.attention"], shares) <= 1e-6
        assert gap(seen[f"blocks.{n}.input"], want.hidden_states[n]) <= 1e-5


def test_shares_leave_dropout_out() -> None:
    config = gpt2.PRESETS["gpt2-nano"].model_copy(update={"dropout": 0.5, "n_layers": 1})
    model = gpt2.build(config).train()
    shares = attention_weights(model, TOKENS)["blocks.0.attention"]
    assert model.training and model.stack.blocks[0].attention.mixer.training
    assert shares.sum(-1).sub(1).abs().max() <= 1e-5  # dropout would have taken half and doubled the rest


def test_shares_of_a_padded_row_and_of_a_step_with_a_cache(small: Any) -> None:
    real = torch.tensor([[1] * 9, [1] * 5 + [0] * 4])
    shares = attention_weights(small, TOKENS, documents=real)["blocks.2.attention"]
    assert shares[1, :, :5, 5:].eq(0).all() and shares[1, :, :5].sum(-1).sub(1).abs().max() <= 1e-6
    whole = attention_weights(small, TOKENS)["blocks.2.attention"]
    cache = small.new_cache(2, 16)
    with torch.no_grad():
        small(TOKENS[:, :8], cache=cache)
    step = attention_weights(small, TOKENS[:, 8:], cache=cache)["blocks.2.attention"]
    assert step.shape == (2, 4, 1, 9) and gap(step[:, :, 0], whole[:, :, 8]) <= 1e-6


def test_gradients_are_true_slopes(small: Any) -> None:
    """Against a central difference, at a point in the middle."""
    name = "blocks.1.attention"
    with capture(small, [name], gradients=True) as seen:
        small(TOKENS).hidden.square().sum().backward()
    slope = seen[name].grad
    assert slope is not None and seen[name].requires_grad
    push = torch.randn(seen[name].shape, generator=torch.Generator().manual_seed(2))

    def at(step: float) -> float:
        with torch.no_grad(), replace(small, {name: lambda x: x + step * push}):
            return small(TOKENS).hidden.double().square().sum().item()

    assert (at(1e-3) - at(-1e-3)) / 2e-3 == pytest.approx((slope * push).sum().item(), rel=1e-3)


def test_gradients_where_no_weight_learns(small: Any) -> None:
    for weight in small.parameters():
        weight.requires_grad_(False)
    with capture(small, ["embeddings"], gradients=True) as seen:
        small(TOKENS, labels=TOKENS).losses.sum().backward()
    assert seen["embeddings"].grad.abs().sum(-1).gt(0).all()


def test_a_patch_carries_one_run_into_another(small: Any) -> None:
    """All of the residual stream replaced by another run's gives that run's output; one place, only what sees it."""
    other = (TOKENS + 7) % 61
    with torch.no_grad():
        with capture(small, ["blocks.1.output"]) as seen:
            want = small(other).logits
        with replace(small, {"blocks.1.output": lambda x: seen["blocks.1.output"]}):
            assert torch.equal(small(TOKENS).logits, want)

        def one_place(x: Tensor) -> Tensor:
            x = x.clone()
            x[:, 4] = seen["blocks.1.output"][:, 4]
            return x

        clean = small(TOKENS).logits
        with replace(small, {"blocks.1.output": one_place}):
            patched = small(TOKENS).logits
    assert torch.equal(patched[:, :4], clean[:, :4])
    assert (patched[:, 4:] - clean[:, 4:]).abs().amax((0, 2)).gt(1e-4).all()


def test_a_mixer_that_layers_share_is_told_apart() -> None:
    config = qwen3.Config(
        vocab_size=61, d_model=32, n_layers=2, n_heads=2, n_kv_heads=2, d_head=16, d_ff=48, max_len=64
    )
    model = qwen3.build(config).eval()
    scramble(model)
    with torch.no_grad(), capture(model) as apart:
        model(TOKENS)
    model.stack.blocks[1].attention.mixer = model.stack.blocks[0].attention.mixer
    with torch.no_grad(), capture(model) as shared:
        model(TOKENS)
    assert all(torch.equal(apart[name], shared[name]) for name in apart)
    ablate = {"blocks.1.attention.mixed": torch.zeros_like}
    with torch.no_grad(), replace(model, ablate), capture(model) as ablated:
        model(TOKENS)
    assert (
        torch.equal(ablated["blocks.0.output"], shared["blocks.0.output"]) and ablated["blocks.1.attention"].eq(0).all()
    )


def test_mistakes_and_failures_leave_nothing_behind(small: Any) -> None:
    unknown = pytest.raises(UserError, match=r"'blocks.3.output' is no point of this model \(did you mean 'blocks")
    with unknown, capture(small, ["blocks.0.output", "blocks.3.output"]):
        pass
    narrow = pytest.raises(UserError, match=r"blocks.0.output: the replacement must be a tensor of shape \[2, 9, 32\]")
    with narrow, replace(small, {"blocks.0.output": lambda x: x[:1]}):
        small(TOKENS)
    with pytest.raises(ZeroDivisionError), capture(small):
        _ = 1 / 0
    assert hooks(small) == 0


def test_nobody_looks_nothing_is_held(small: Any) -> None:
    """No hook, and not a module of this file in the model, once the block is left."""
    with capture(small):
        small(TOKENS)
    gc.collect()
    assert hooks(small) == 0 and not any(type(part).__module__ == looking.__name__ for part in small.modules())
