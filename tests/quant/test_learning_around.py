"""QLoRA: an adapter learns around a quantised base, which stays as it is bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch

from modelworks.adapters import _attached, lora
from modelworks.nn.transformer import Transformer
from modelworks.quant.walk import quantise

from . import tiny


@pytest.mark.parametrize("method", ["nf4", "int8-dynamic"])
def test_lora_wins_back_what_quantising_lost_and_the_base_stays(learned: Transformer, method: str) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(learned)
    quantise(model, method, group=64)
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    held_out = tiny.rows(16, seed=9)
    before = tiny.nats(model, held_out)
    _attached.attach(model, "qwen3", tiny.CONFIG, "lora", lora.Config(rank=4), name="adapter", seed=1)
    assert tiny.nats(model, held_out) == pytest.approx(before, abs=1e-6), "it starts as the identity"
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in learning) < 0.5 * sum(t.numel() for t in base.values())
    optimiser = torch.optim.AdamW(learning, 2e-3)
    model.train()
    for batch in tiny.rows(80, seed=11).split(8):
        loss = model(batch[:, :-1], labels=batch[:, 1:]).losses.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert tiny.nats(model.eval(), held_out) < before - 0.002
    after = model.state_dict()
    changed = [name for name, tensor in base.items() if not torch.equal(tensor, _same(after, name))]
    assert not changed


def _same(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    """The tensor of that name, which may stand one level deeper now that an adapter wraps its layer."""
    if name in state:
        return state[name]
    path, _, own = name.rpartition(".")
    return next(t for key, t in state.items() if key.startswith(f"{path}.") and key.endswith(f".{own}"))
