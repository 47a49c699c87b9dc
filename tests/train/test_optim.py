"""Optimisers against independent ones: torch's AdamW, a NumPy Newton-Schulz in float64, torch's own Muon."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from modelworks.train import optim
from modelworks.train.optim import Muon, Optimizer, is_matrix, named, orthogonal
from modelworks.train.settings import TrainSettings

from .toys import build


@pytest.fixture
def no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optim, "has_fast_bfloat16", lambda kind: False)


def reference(update: np.ndarray, steps: int = 5) -> np.ndarray:
    """Newton-Schulz as its author's note writes it, one matrix at a time."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = update.astype(np.float64)
    x = x.T if x.shape[0] > x.shape[1] else x
    x = x / (np.linalg.norm(x) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if update.shape[0] > update.shape[1] else x


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 5, 17), (4, 17, 5), (1, 1, 6), (1, 64, 32)])
def test_orthogonal_is_newton_schulz(shape: tuple[int, int, int], no_bfloat16: None) -> None:
    torch.manual_seed(0)
    update = torch.randn(shape, dtype=torch.float64)
    expected = np.stack([reference(matrix) for matrix in update.numpy()])
    np.testing.assert_allclose(orthogonal(update).numpy(), expected, rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(orthogonal(update.float()).numpy(), expected, rtol=2e-3, atol=2e-4)
    low = orthogonal(update.to(torch.bfloat16)).float().numpy()
    assert np.linalg.norm(low - expected) < 0.05 * np.linalg.norm(expected)


def test_orthogonal_has_singular_values_near_one_in_any_format() -> None:
    torch.manual_seed(1)
    for scale in (1e-3, 1.0, 1e15):
        values = torch.linalg.svdvals(orthogonal(torch.randn(3, 48, 96) * scale))
        assert float(values.min()) > 0.3 and float(values.max()) < 1.35
    assert torch.equal(orthogonal(torch.zeros(1, 4, 4)), torch.zeros(1, 4, 4))


def test_muon_is_its_recursion_in_float64(no_bfloat16: None) -> None:
    """Thirty steps over two shapes: Nesterov momentum 0.95, scale sqrt(max(1, R / C)), decoupled decay."""
    torch.manual_seed(2)
    weights = {name: nn.Parameter(torch.randn(*shape, dtype=torch.float64)) for name, shape in
               {"a": (6, 6), "b": (12, 4), "c": (6, 6), "d": (4, 12)}.items()}  # fmt: skip
    muon = Muon(weights, rate=0.02, decay=0.1)
    expected = {name: w.detach().numpy().copy() for name, w in weights.items()}
    momentum = {name: np.zeros_like(value) for name, value in expected.items()}
    for step in range(30):
        muon.scale = 1 - step / 40
        for name, weight in weights.items():
            weight.grad = torch.randn_like(weight)
            gradient = weight.grad.numpy()
            momentum[name] = 0.95 * momentum[name] + 0.05 * gradient
            direction = reference(0.05 * gradient + 0.95 * momentum[name])
            rate = 0.02 * muon.scale
            rows, columns = gradient.shape
            expected[name] = expected[name] * (1 - rate * 0.1) - rate * max(1, rows / columns) ** 0.5 * direction
        muon.step()
    for name, weight in weights.items():
        np.testing.assert_allclose(weight.detach().numpy(), expected[name], rtol=1e-9, atol=1e-11)


def test_muon_agrees_with_torchs(no_bfloat16: None) -> None:
    torch.manual_seed(3)
    own = nn.Parameter(torch.randn(16, 16))
    other = nn.Parameter(own.detach().clone())
    muon = Muon({"w": own}, rate=0.02, decay=0.1)
    theirs = torch.optim.Muon([other], lr=0.02, weight_decay=0.1, momentum=0.95, nesterov=True)
    for _ in range(10):
        own.grad = torch.randn(16, 16)
        other.grad = own.grad.clone()
        muon.step()
        theirs.step()
    torch.testing.assert_close(own, other, rtol=0, atol=0.02 * 10 * 0.03)  # theirs iterates in bfloat16 always


def test_adamw_is_torchs() -> None:
    """Same weights as torch.optim.AdamW with the same groups and betas, on the same gradients."""
    model = build()
    twin = copy.deepcopy(model)
    settings = TrainSettings(steps=1, optimizer="adamw", learning_rate=3e-3, weight_decay=0.1)
    own = Optimizer(model, settings)
    decayed = [p for n, p in twin.named_parameters() if p.ndim == 2 and n != "stem.weight"]
    exempt = [p for n, p in twin.named_parameters() if p.ndim < 2 or n == "stem.weight"]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": exempt, "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-8, foreach=False, fused=False)
    for step in range(20):
        torch.manual_seed(step)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad.clone()
        scale = (step + 1) / 20
        own.step(scale)
        for group in theirs.param_groups:
            group["lr"] = 3e-3 * scale
        theirs.step()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-7)


def test_who_gets_muon() -> None:
    model = build()
    model.head.weight = nn.Parameter(torch.zeros(11, 32))
    chosen = {name for name, module, parameter in named(model) if is_matrix(name, module, parameter)}
    assert chosen == {"one.weight", "two.weight", "up.weight"}
    for name, expected in {
        "stack.d_head.weight": False,
        "stack.ahead.weight": True,
        "stem.project.weight": False,
    }.items():
        assert is_matrix(name, nn.Linear(2, 2), nn.Parameter(torch.zeros(2, 2))) is expected


def test_tied_and_frozen_parameters_count_once_and_not_at_all() -> None:
    model = nn.ModuleDict({"stem": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False), "mid": nn.Linear(4, 4)})
    model["head"].weight = model["stem"].weight
    model["mid"].bias.requires_grad_(False)
    assert [name for name, _, _ in named(model)] == ["stem.weight", "mid.weight"]


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_state_comes_back_bit_for_bit(kind: str) -> None:
    settings = TrainSettings(steps=1, optimizer=kind)
    one, other = build(), build()
    first, second = Optimizer(one, settings), Optimizer(other, settings)

    def step(model: nn.Module, optimizer: Optimizer, seed: int) -> None:
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step(1.0)

    for seed in range(3):
        step(one, first, seed)
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    with torch.no_grad():
        for a, b in zip(other.parameters(), one.parameters(), strict=True):
            a.copy_(b)
    second.load(saved)
    for seed in range(3, 6):
        step(one, first, seed)
        step(other, second, seed)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    first.forget()
    assert first.tensors() == {}


def test_a_parameter_may_learn_faster_than_the_others() -> None:
    """`rate` times the learning rate (LoRA+): as torch's AdamW with a group of its own."""
    torch.manual_seed(2)
    model = nn.ParameterList(
        [nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4))]
    )
    twin = copy.deepcopy(model)
    model[1].rate = 16.0
    settings = TrainSettings(steps=3, optimizer="adamw", learning_rate=0.01, weight_decay=0.1)
    ours = Optimizer(model, settings)
    groups = [
        {"params": [twin[0]], "weight_decay": 0.1},
        {"params": [twin[1]], "weight_decay": 0.1, "lr": 0.16},
        {"params": [twin[2]], "weight_decay": 0.0},
    ]
    theirs = torch.optim.AdamW(groups, lr=0.01, betas=optim.BETAS, eps=optim.EPSILON)
    for step in range(3):
        for mine, other in zip(model, twin, strict=True):
            mine.grad = torch.randn(mine.shape, generator=torch.Generator().manual_seed(step))
            other.grad = mine.grad.clone()
        ours.step(1.0)
        theirs.step()
    for mine, other in zip(model, twin, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


def test_experts_are_as_many_matrices() -> None:
    """A stack [E, R, C] steps as its E matrices would alone; a convolution's kernel and a vector do not."""
    torch.manual_seed(4)
    stack = nn.Parameter(torch.randn(3, 12, 4, dtype=torch.float64))
    single = {str(n): nn.Parameter(matrix.clone()) for n, matrix in enumerate(stack.detach())}
    together, apart = Muon({"experts": stack}, 0.02, 0.1), Muon(single, 0.02, 0.1)
    for _ in range(4):
        stack.grad = torch.randn_like(stack)
        for weight, grad in zip(single.values(), stack.grad, strict=True):
            weight.grad = grad.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(stack.detach(), torch.stack([w.detach() for w in single.values()]), rtol=0, atol=0)
    holder = nn.Module()
    assert is_matrix("block.up.weight", holder, stack)
    assert not is_matrix("block.up.bias", holder, nn.Parameter(torch.zeros(1, 3, 4)))
    assert not is_matrix("stem.experts.weight", holder, stack)
    kernel = nn.Conv1d(4, 12, 3)
    assert not is_matrix("block.convolution.weight", kernel, kernel.weight)


@pytest.mark.parametrize(("kind", "times"), [("muon", 128 / 32), ("adamw", 1.0)])
def test_a_head_learns_slower_the_wider_it_is(kind: str, times: float) -> None:
    """Adam's first step is its rate in size: the head's is 128 / width of it beside Muon, and the rate without."""
    model = build()
    model.head.weight.grad, model.stem.weight.grad = (
        torch.ones_like(model.head.weight),
        torch.ones_like(model.stem.weight),
    )
    before = model.head.weight.detach().clone(), model.stem.weight.detach().clone()
    assert model.head.weight.shape[1] == 32
    Optimizer(model, TrainSettings(steps=1, optimizer=kind, learning_rate=1e-3, weight_decay=0.0)).step(1.0)
    torch.testing.assert_close(
        before[0] - model.head.weight, torch.full_like(before[0], 1e-3 * times), rtol=1e-3, atol=0
    )
    torch.testing.assert_close(before[1] - model.stem.weight, torch.full_like(before[1], 1e-3), rtol=1e-3, atol=0)


def test_inertia_is_the_momentum_of_that_step(no_bfloat16: None) -> None:
    """Without momentum the step is the gradient's own direction, whatever came before."""
    model = build()
    optimizer = Optimizer(model, TrainSettings(steps=1, matrix_learning_rate=0.5, weight_decay=0.0))
    for seed in range(3):
        torch.manual_seed(seed)
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        before = model.one.weight.detach().clone()
        optimizer.step(1.0, inertia=0.0)
    expected = 0.5 * reference(model.one.weight.grad.double().numpy())
    np.testing.assert_allclose((before - model.one.weight).detach().numpy(), expected, rtol=1e-3, atol=1e-4)
