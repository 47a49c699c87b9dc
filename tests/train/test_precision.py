"""bfloat16 copies with float32 masters: the oracle is a model that was really converted."""

import copy

import pytest
import torch
from torch import nn

from modelworks.train.precision import Lowered


def made() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(11, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 11, bias=False))


def loss(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens).float(), tokens.roll(1), reduction="sum")


def batches(n: int) -> list[torch.Tensor]:
    return list(torch.randint(11, (n, 5), generator=torch.Generator().manual_seed(3)))


def gradients(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("blocks", [1, 3])
def test_gradients_are_the_converted_models_summed_in_float32(blocks: int) -> None:
    """Over three micro-batches, in one block or in one block each: bit for bit."""
    model = made()
    converted = copy.deepcopy(model).bfloat16()
    wanted = {name: torch.zeros(p.shape) for name, p in model.named_parameters()}
    for tokens in batches(3):
        loss(converted, tokens).backward()
        for name, p in converted.named_parameters():
            wanted[name] += p.grad.float()
            p.grad = None
    lowered = Lowered(model)
    for step in range(2):  # the second step begins with the sums of the first
        for part in torch.tensor([0, 1, 2]).tensor_split(blocks):
            with lowered(torch.bfloat16):
                for number in part.tolist():
                    loss(model, batches(3)[number]).backward()
        assert all(torch.equal(g, wanted[name]) for name, g in gradients(model).items()), step
        assert all(g.dtype == torch.float32 for g in gradients(model).values())
        model.zero_grad()


def test_weights_come_back_whatever_happens() -> None:
    model = made()
    model[1].requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError), Lowered(model)(torch.bfloat16):
        assert all(p.dtype == torch.bfloat16 for p in model.parameters())
        raise ValueError
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    with torch.no_grad(), Lowered(model)(torch.bfloat16):
        loss(model, batches(1)[0])
    assert all(p.grad is None for p in model.parameters())


def test_steps_too_small_for_bfloat16_add_up() -> None:
    """A thousand steps of a hundred-thousandth each move a weight of 1 by 0.01; bfloat16 alone would stand still."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    lowered = Lowered(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-5)
    for _ in range(1000):
        with lowered(torch.bfloat16):
            model(torch.ones(1, 1, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.weight.item() == pytest.approx(0.99, abs=1e-4)
