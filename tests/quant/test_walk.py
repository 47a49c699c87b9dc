"""Quantising a whole model: what is quantised, what it costs in quality, what calibration buys."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from modelworks.base.errors import UserError
from modelworks.models import gpt2
from modelworks.nn.transformer import Transformer
from modelworks.quant import awq, calibrate, gptq, int4
from modelworks.quant.linear import QuantisedLinear
from modelworks.quant.walk import METHODS, quantise, weight_bytes

from . import tiny


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    return list(tiny.rows(24, seed=5)[:, :-1].split(8))


def made(learned: Transformer, method: str, batches: list[Tensor], **settings) -> Transformer:
    model = copy.deepcopy(learned)
    quantise(model, method, batches=batches, **{"group": 32, **settings})
    return model


def test_quality_is_lost_in_the_order_of_bits_and_care(learned: Transformer, batches: list[Tensor]) -> None:
    held_out = tiny.rows(40, seed=9)
    base = tiny.nats(learned, held_out)
    assert base < 1.0, "the model has learned something (fresh: 2.9 nats)"
    models = {method: made(learned, method, batches) for method in METHODS}
    lost = {method: tiny.divergence(learned, model, held_out) for method, model in models.items()}
    assert 0 <= lost["int8"] <= lost["int8-dynamic"] <= lost["int4-gptq"] <= 0.5 * lost["int4"], lost
    assert lost["int4-awq"] <= lost["int4"], lost
    assert lost["nf4"] <= 3 * lost["int4"], lost
    worse = {method: tiny.nats(model, held_out) - base for method, model in models.items()}
    assert abs(worse["int8"]) <= 1e-3 and abs(worse["int4-gptq"]) <= 0.01 and abs(worse["int4"]) <= 0.05, worse


def test_awq_saves_a_model_with_loud_inputs(learned: Transformer, batches: list[Tensor]) -> None:
    model, held_out = copy.deepcopy(learned), tiny.rows(40, seed=9)
    with torch.no_grad():
        for block in model.stack.blocks:
            loud(block)
    lost = {m: tiny.divergence(learned, made(model, m, batches), held_out) for m in ("int4", "int4-awq")}
    assert lost["int4-awq"] <= 0.5 * lost["int4"], lost


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_what_is_quantised_and_what_is_left(learned: Transformer, dtype: torch.dtype | None) -> None:
    model = copy.deepcopy(learned)
    outcome = quantise(model, "int4", group=32, dtype=dtype)
    assert len(outcome.quantised) == 2 * 7
    assert set(outcome.left) == {"stem.tokens", "head.projection"}
    assert "head" in outcome.left["head.projection"]
    assert outcome.bytes_before == weight_bytes(learned) and outcome.bytes_after == weight_bytes(model)
    assert model.head.projection.weight is model.stem.tokens.weight
    packed = [part for part in model.modules() if isinstance(part, QuantisedLinear)]
    matrices = sum(part.in_features * part.out_features for part in packed)
    scale = 4 if dtype is None else 2
    assert sum(part.nbytes for part in packed) == matrices // 2 + matrices // 32 * scale
    assert not any(part.dtype == torch.float32 for part in model.state_dict().values()) or dtype is None


def test_a_tied_head_may_be_quantised_and_the_embedding_stays(learned: Transformer) -> None:
    model = copy.deepcopy(learned)
    quantise(model, "int8", head=True)
    assert isinstance(model.head.projection, QuantisedLinear)
    assert torch.equal(model.stem.tokens.weight, learned.stem.tokens.weight)
    held_out = tiny.rows(8, seed=2)
    assert tiny.nats(model, held_out) == pytest.approx(tiny.nats(learned, held_out), abs=2e-3)


def test_layers_that_do_not_fit_stay_float_with_the_reason(learned: Transformer) -> None:
    model = copy.deepcopy(learned)
    outcome = quantise(model, "int4", group=128)  # only the feed-forward's way down has as many inputs
    assert outcome.quantised == ["stack.blocks.0.feedforward.down", "stack.blocks.1.feedforward.down"]
    assert outcome.left["stack.blocks.0.attention.query"] == "64 inputs are no multiple of the group of 128"
    with pytest.raises(UserError, match=r"no layer of this model can be quantised by nf4.*multiple of the group of 48"):
        quantise(copy.deepcopy(learned), "nf4", group=48)
    with pytest.raises(UserError, match="did you mean 'int4-gptq'"):
        quantise(model, "int4-gtpq")
    with pytest.raises(UserError, match="int4-awq is calibrated on text"):
        quantise(model, "int4-awq")


def test_cached_decoding_is_the_whole_pass(learned: Transformer, batches: list[Tensor]) -> None:
    for method in ("int8", "int8-dynamic", "int4-gptq", "nf4"):
        model = made(learned, method, batches, dtype=torch.bfloat16)
        tokens = tiny.rows(1, seed=3, length=12)
        whole = model(tokens).logits
        cache = model.new_cache(1, 16)
        steps = [model(tokens[:, t : t + 1], cache=cache).logits for t in range(tokens.shape[1])]
        assert (torch.cat(steps, 1) - whole).abs().max() <= 0.15, method


def test_gptq_makes_up_for_errors_where_inputs_go_together() -> None:
    torch.manual_seed(0)
    mixed = torch.randn(600, 60) @ torch.randn(60, 192) + 0.1 * torch.randn(600, 192)
    weight = torch.randn(32, 192)  # more inputs than are rounded at a time
    scales = int4.group_scales(weight, 32, torch.float32)

    def lost(codes: Tensor) -> float:
        off = codes.double() * scales.double().repeat_interleave(32, 1) - weight.double()
        return (mixed.double() @ off.t()).square().sum().item()

    nearest = lost(int4.nearest_codes(weight, scales))
    assert lost(gptq.compensated_codes(weight, scales, mixed.t() @ mixed)) <= 0.25 * nearest
    silent = mixed.clone()
    silent[:, 150] = 0  # an input that is never there cannot be made up for
    codes = gptq.compensated_codes(weight, scales, silent.t() @ silent)
    assert torch.equal(codes[:, 150], int4.nearest_codes(weight, scales)[:, 150])
    apart = torch.diag(torch.rand(192) + 0.1)  # inputs that have nothing to do with each other: nothing to gain
    assert torch.equal(gptq.compensated_codes(weight, scales, apart), int4.nearest_codes(weight, scales))


def test_awq_gives_loud_inputs_finer_steps() -> None:
    torch.manual_seed(0)
    rows = torch.randn(256, 64)
    rows[:, [3, 40]] *= 20
    weight = torch.randn(32, 64)
    factors = awq.best_scales([weight], rows, 32)
    assert factors[[3, 40]].min() > 2 * factors.median()

    def lost(weight: Tensor, rows: Tensor) -> float:
        steps = int4.group_scales(weight, 32, torch.float32)
        off = int4.nearest_codes(weight, steps).float() * steps.repeat_interleave(32, 1) - weight
        return (rows @ off.t()).square().sum().item()

    assert lost(weight * factors, rows / factors) < 0.5 * lost(weight, rows)


def loud(block: nn.Module) -> None:
    """The same function with one input of each matrix ten times as loud."""
    feedforward, attention = block.feedforward, block.attention
    for before, readers in (
        (block.attention_norm, (attention.query, attention.key, attention.value)),
        (block.feedforward_norm, (feedforward.gate, feedforward.up)),
        (feedforward.up, (feedforward.down,)),
    ):
        before.weight[7] *= 10
        for reader in readers:
            reader.weight[:, 7] /= 10


def test_folding_changes_no_function_and_is_undone_where_it_would(learned: Transformer, batches: list[Tensor]) -> None:
    model = copy.deepcopy(learned)
    before = model(batches[0]).logits
    with torch.no_grad():
        for block in model.stack.blocks:
            loud(block)
        for turn in calibrate.turns(model, batches):
            inside = {name: part for name, part in turn.block.named_modules() if type(part) is nn.Linear}
            seen, given = turn.watch(inside, gram=False)
            assert awq.fold(turn, inside, seen, given, 32) == 3
    assert not torch.equal(
        model.stack.blocks[0].feedforward_norm.weight, learned.stack.blocks[0].feedforward_norm.weight
    )
    assert (model(batches[0]).logits - before).abs().max() <= 1e-4

    class Leaky(nn.Module):
        """Reads the norm's output by itself too: scaling it back in the matrix does not undo that."""

        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) + x

    leaky = copy.deepcopy(learned)
    loud(leaky.stack.blocks[0])
    kept = leaky.stack.blocks[0].feedforward_norm.weight.clone()
    leaky.stack.blocks[0].feedforward = Leaky(leaky.stack.blocks[0].feedforward)
    with torch.no_grad():
        turn = next(iter(calibrate.turns(leaky, batches)))
        inside = {name: part for name, part in turn.block.named_modules() if type(part) is nn.Linear}
        seen, given = turn.watch(inside, gram=False)
        assert awq.fold(turn, inside, seen, given, 32) == 2
    assert torch.equal(leaky.stack.blocks[0].feedforward_norm.weight, kept)


def test_blocks_are_calibrated_on_what_quantised_blocks_give(learned: Transformer, batches: list[Tensor]) -> None:
    model = copy.deepcopy(learned)
    arrived = []
    with torch.no_grad():
        for turn in calibrate.turns(model, batches):
            arrived.append(turn.calls[0][0][0])
            turn.block.feedforward.down.weight.zero_()
        assert torch.equal(arrived[1], _into_second(model, batches[0]))
        assert not torch.equal(arrived[1], _into_second(learned, batches[0]))


def _into_second(model: Transformer, tokens: Tensor) -> Tensor:
    caught = []
    handle = model.stack.blocks[1].register_forward_pre_hook(lambda _, args: caught.append(args[0]))
    model(tokens)
    handle.remove()
    return caught[0]


def test_a_family_with_plain_feed_forward_and_layer_norms(batches: list[Tensor]) -> None:
    preset = next(iter(gpt2.PRESETS.values()))
    config = preset.model_copy(update={"vocab_size": 32, "n_layers": 2, "d_model": 64, "n_heads": 2, "max_len": 64})
    torch.manual_seed(0)
    model = gpt2.build(config).eval()
    for part in model.parameters():
        part.data.add_(torch.randn_like(part) * 0.05)
    before = model(batches[0]).logits
    outcome = quantise(model, "int4-awq", group=32, batches=batches)
    assert outcome.folded >= 1 and len(outcome.quantised) == 12
    assert (model(batches[0]).logits - before).std() <= 0.25 * before.std()
