"""Every packed layer multiplies by exactly the matrix that its codes mean, whichever kernel does it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from modelworks.quant import int4, int8, nf4
from modelworks.quant.linear import QuantisedLinear
from modelworks.quant.walk import METHODS, packed

PLAIN = ["int8", "int4", "nf4"]
NF4 = [-1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.0910500, 0.0,
       0.0795803, 0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.5626170, 0.7229568, 1.0]  # fmt: skip


def layer(method: str, outputs: int = 48, inputs: int = 128, group: int = 32, dtype=torch.float32) -> QuantisedLinear:
    torch.manual_seed(3)
    plain = nn.Linear(inputs, outputs).requires_grad_(False)
    span = inputs if method.startswith("int8") else group
    return packed(plain, METHODS[method].layer, *METHODS[method].round(plain.weight.detach(), span, dtype))


def plain_weight(outputs: int = 48, inputs: int = 128) -> np.ndarray:
    torch.manual_seed(3)
    return nn.Linear(inputs, outputs).weight.detach().double().numpy()


def meant(made: QuantisedLinear) -> np.ndarray:
    """The matrix in float64, read out of codes and scales by the formats' own definitions."""
    codes, scales = made.codes.numpy(), made.scales.double().numpy()
    if made.BITS == 8:
        return codes.astype(np.float64) * scales
    both = np.empty((codes.shape[0], codes.shape[1] * 2))
    if isinstance(made, int4.Int4Linear):
        both[:, 0::2], both[:, 1::2] = codes % 16 - 8.0, codes // 16 - 8.0
    else:
        both[:, 0::2], both[:, 1::2] = np.array(NF4)[codes // 16], np.array(NF4)[codes % 16]
    return both * np.repeat(scales, made.group, 1)


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_float_matrix_is_what_codes_and_scales_mean(method: str, dtype: torch.dtype) -> None:
    made = layer(method, dtype=dtype)
    want = meant(made)
    for wanted, bits in ((torch.float64, 22), (torch.float32, 22), (torch.bfloat16, 8), (torch.float16, 10)):
        found = made.dequantised(wanted)
        assert found.dtype == wanted
        np.testing.assert_allclose(found.double().numpy(), want, rtol=2**-bits, atol=1e-7)
    assert torch.equal(made.weight, made.dequantised(dtype))


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_number_goes_to_the_nearest_that_there_is(method: str, dtype: torch.dtype) -> None:
    made, weight = layer(method, dtype=dtype), plain_weight()
    levels = {"int8": np.arange(-127.0, 128), "int4": np.arange(-8.0, 8), "nf4": np.array(NF4)}[method]
    scales = np.repeat(made.scales.double().numpy(), made.group, 1)
    best = np.abs(levels[:, None, None] * scales - weight).min(0)
    np.testing.assert_allclose(np.abs(meant(made) - weight), best, atol=1e-6)
    bound = {"int8": 0.51, "int4": 0.51, "nf4": 0.16}[method]  # half a step; half of NF4's widest gap
    assert (np.abs(meant(made) - weight) <= bound * scales).all()


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize("rows", [1, 7, 300])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_with_that_matrix(method: str, rows: int, dtype: torch.dtype) -> None:
    made = layer(method, dtype=dtype)
    x = torch.randn(2, rows, 128, generator=torch.Generator().manual_seed(rows)).to(dtype)
    want = x.double().numpy() @ made.dequantised(dtype).double().numpy().T + made.bias.double().numpy()
    found = made(x)
    assert found.dtype == dtype and found.shape == (2, rows, 48)
    size = np.abs(x.double().numpy()) @ np.abs(meant(made)).T
    assert (np.abs(found.double().numpy() - want) <= (1e-6 if dtype == torch.float32 else 2**-8) * size + 1e-6).all()


@pytest.mark.parametrize("method", PLAIN)
@pytest.mark.parametrize(
    "outputs, inputs, group", [(97, 40, 8), (97, 64, 32), (16, 64, 64), (33, 72, 24), (80, 96, 96), (5, 33, 33)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_shapes_that_kernels_do_not_like(method: str, outputs: int, inputs: int, group: int, dtype) -> None:
    if METHODS[method].layer.fits(inputs, inputs if method == "int8" else group):
        assert method != "int8"
        return
    made = layer(method, outputs, inputs, group, dtype)
    x = torch.randn(3, inputs).to(dtype)
    want = x.double() @ made.dequantised(dtype).double().T + made.bias.double()
    assert (made(x).double() - want).abs().max() <= (1e-5 if dtype == torch.float32 else 0.02)
    assert made(x[:0]).shape == (0, outputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dynamic_int8_adds_up_whole_numbers(dtype: torch.dtype) -> None:
    made = layer("int8-dynamic", dtype=dtype)
    x = torch.randn(2, 9, 128).to(dtype)
    x[0, 0] = 0
    rows = x.float().numpy().astype(np.float64)
    scales = np.maximum(np.abs(rows).max(-1, keepdims=True), 1e-28) / 127
    codes = np.rint(rows / scales).astype(np.int64)
    want = (codes @ made.codes.numpy().astype(np.int64).T) * scales * made.scales.double().numpy()[:, 0]
    want += made.bias.detach().double().numpy()
    found = made(x).detach().double().numpy()
    np.testing.assert_allclose(found, want, rtol=1e-5 if dtype == torch.float32 else 2**-7, atol=1e-2)
    exact = x.double().numpy() @ meant(made).T + made.bias.detach().double().numpy()
    assert np.abs(found - exact).max() <= 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("method", [*PLAIN, "int8-dynamic"])
def test_slopes_reach_the_input_and_nothing_else(method: str) -> None:
    made = layer(method)
    x = torch.randn(4, 6, 128, requires_grad=True)
    grad = torch.randn(4, 6, 48)
    made(x).backward(grad)
    assert (x.grad.double() - grad.double() @ torch.from_numpy(meant(made))).abs().max() <= 1e-5
    assert [name for name, weight in made.named_parameters()] == ["bias"]
    assert torch.equal(made(x.detach()), made(x)), "learning and using give the same"
    with torch.autocast("cpu", torch.bfloat16):
        assert made(x).dtype == torch.bfloat16
        made(x).float().sum().backward()


@pytest.mark.parametrize("method", [*PLAIN, "int8-dynamic"])
def test_state_moves_and_no_old_kernel_stays(method: str) -> None:
    made = layer(method, dtype=torch.bfloat16)
    x = torch.randn(1, 128).bfloat16()
    first = made(x)
    other = copy.deepcopy(made)
    torch.manual_seed(8)
    plain = nn.Linear(128, 48).requires_grad_(False)
    fresh = packed(plain, type(made), *METHODS[method].round(plain.weight.detach(), made.group, torch.bfloat16))
    other.load_state_dict(fresh.state_dict())
    assert torch.equal(other(x), fresh(x)) and torch.equal(made(x), first)
    assert set(made.state_dict()) == {"codes", "scales", "bias"}
    halved = copy.deepcopy(made)
    halved.scales = nn.Buffer(made.scales * 2)
    halved.to(torch.float32).to(torch.bfloat16)
    assert (halved(x) - halved.bias - 2 * (first - made.bias)).abs().max() <= 0.02


def test_layers_know_their_size() -> None:
    sizes = {"int8": 8 * 128, "int4": 4 * 128 + 4 * 16, "nf4": 4 * 128 + 4 * 16}
    for method, bits in sizes.items():
        made = layer(method, dtype=torch.bfloat16)
        scales = 16 if method == "int8" else 0
        assert made.nbytes * 8 == 48 * (bits + scales) + 48 * 16
        assert (made.in_features, made.out_features) == (128, 48)
        assert "128 -> 48" in repr(made)


def test_rows_of_zeros_stay_zeros() -> None:
    weight = torch.zeros(16, 64)
    for _, scales in (int8.round_channels(weight, torch.float32), int4.round_groups(weight, 32, torch.float32)):
        assert torch.isfinite(scales).all() and (scales > 0).all()
    codes, scales = nf4.round_normal(weight, 32, torch.float32)
    made = nf4.NF4Linear(64, 16, False, 32, torch.float32)
    made.fill(codes, scales, None)
    assert torch.equal(made.weight, weight)
