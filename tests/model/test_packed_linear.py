"""8-bit integers, which need to know something of the inputs to be exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edje_qdrant.model.inference.packed_linear import has_int8_kernels, pack_linear

pytestmark = pytest.mark.skipif(not has_int8_kernels(), reason="no 8-bit dot products here")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def error(found: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return each row's error relative to the row's length, `(rows,)`."""
    exact = functional.linear(x.float(), weight, bias)
    return (found.float() - exact).norm(dim=1) / exact.norm(dim=1)


@pytest.mark.parametrize(("rows", "width"), [(1, 64), (300, 64), (700, 512)])
def test_with_a_scale_for_each_row_a_row_does_not_depend_on_others(rows, width):
    weight, bias = drawn(32, width), drawn(32, seed=1)
    x = functional.gelu(drawn(rows, width, seed=2)).bfloat16()
    x[rows // 2] *= 50
    product = pack_linear(weight, bias, "int8", lowest=-9.0)
    found = product(x)
    alone = torch.cat([product(row[None]) for row in x])
    assert torch.equal(found, alone)


def test_a_large_row_takes_no_exactness_from_the_others():
    weight, bias = drawn(32, 64), drawn(32, seed=1)
    x = functional.gelu(drawn(40, 64, seed=2)).bfloat16()
    x[7] = functional.relu(x[7]) * 50
    by_row = error(pack_linear(weight, bias, "int8", lowest=-0.171)(x), x, weight, bias)
    at_once = error(pack_linear(weight, bias, "int8")(x), x, weight, bias)
    assert by_row.max() < 0.02
    assert at_once.median() > 5 * by_row.median()


def test_inputs_that_are_always_large_take_no_exactness_from_the_others():
    weight, bias, sizes = drawn(32, 64), drawn(32, seed=1), torch.ones(64)
    x = drawn(40, 64, seed=2)
    x[:, 5] += 40
    weight[:, 5] *= 0.05
    sizes[5] = 14
    x = x.bfloat16()
    known = error(pack_linear(weight, bias, "int8", sizes=sizes)(x), x, weight, bias)
    unknown = error(pack_linear(weight, bias, "int8")(x), x, weight, bias)
    assert known.median() < 0.02
    assert unknown.median() > 2 * known.median()


def test_the_least_and_the_largest_input_keep_their_values():
    """A byte beyond 0 to 255 would be one at the other end."""
    weight, bias = torch.eye(64)[:32], torch.zeros(32)
    lowest = float(functional.gelu(torch.linspace(-2, 0, 9999)).min())
    for high in (lowest, 0.0, 0.01, 3.0, 700.0):
        x = torch.full((5, 64), lowest)
        x[:, ::3] = high
        x = x.bfloat16()
        step = (high + 0.171) / 255
        for linear in (
            pack_linear(weight, bias, "int8", lowest=-0.171),
            pack_linear(weight, bias, "int8", sizes=torch.full((64,), 3.0)),
        ):
            wrong = (linear(x).float() - x[:, :32].float()).abs().max()
            assert wrong <= 1.2 * step + abs(high) / 128


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_shows_in_the_result(bad):
    weight, bias = drawn(32, 64), drawn(32, seed=1)
    x = functional.gelu(drawn(4, 64, seed=2)).bfloat16()
    x[2, 9] = bad
    found = pack_linear(weight, bias, "int8", lowest=-0.171)(x).isfinite().all(dim=1)
    assert found.tolist() == [True, True, False, True]
    assert not pack_linear(weight, bias, "int8")(x).isfinite().all()


def test_activation_and_addition_are_as_in_float32():
    weight, bias = drawn(32, 64), drawn(32, seed=1)
    x = functional.gelu(drawn(40, 64, seed=2)).bfloat16()
    add = drawn(40, 32, seed=3).bfloat16()
    exact = functional.linear(x.float(), weight, bias)
    for more in ({"lowest": -0.171}, {"sizes": torch.ones(64)}, {}):
        linear = pack_linear(weight, bias, "int8", **more)
        for activation, expected in (
            (None, exact), ("gelu", functional.gelu(exact)), (torch.tanh, exact.tanh())
        ):  # fmt: skip
            found = linear(x, activation=activation, add=add).float()
            assert (found - expected - add.float()).abs().mean() < 0.05
