"""Gradients through a quantizer: forward is the code, backward is what the paper says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from vistok.ops.straight_through import rotate, straight_through, unit_vectors


def gradient(function: object, z: Tensor, codes: Tensor, g: Tensor) -> Tensor:
    z = z.clone().requires_grad_()
    (found,) = torch.autograd.grad(function(z, codes), z, g)  # type: ignore[operator]
    return found


@pytest.mark.parametrize("function", [straight_through, rotate])
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-7, 1.0, 1e9])
def test_forward_is_the_code_to_the_bit(function: object, size: float) -> None:
    z = size * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    codes = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(function(z, codes), codes)  # type: ignore[operator]


def test_the_librarys_forms_lose_the_code_where_ours_do_not() -> None:
    codes = torch.ones(1, 4)
    large, small = torch.full((1, 4), 1e9), torch.tensor([[1e-8, 0.0, 0.0, 0.0]])
    assert not torch.equal(large + (codes - large), codes)
    assert not torch.allclose(rotate_to(small, codes), codes)
    assert torch.equal(straight_through(large, codes), codes)
    assert torch.equal(rotate(small, codes), codes)


def test_straight_through_hands_the_gradient_on() -> None:
    z, codes, g = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    assert torch.equal(gradient(straight_through, z, codes, g), g)


def test_rotation_by_hand() -> None:
    # u = (1, 0) is turned by 90 degrees to q = (0, 1) and stretched by 3/2; the gradient is turned back by 90 degrees.
    z, codes, g = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 3.0]]), torch.tensor([[1.0, 5.0]])
    torch.testing.assert_close(gradient(rotate, z, codes, g), torch.tensor([[7.5, -1.5]]))


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 9), st.integers(0, 2**31))
def test_rotation_keeps_the_angle_between_gradient_and_code(dim: int, seed: int) -> None:
    z, codes, g = torch.randn(3, 6, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).unbind(0)
    found = gradient(rotate, z, codes, g)
    ratio = codes.norm(dim=1) / z.norm(dim=1)
    torch.testing.assert_close(found.norm(dim=1), ratio * g.norm(dim=1))
    along_z, along_code = (found * z).sum(1) / z.norm(dim=1), (g * codes).sum(1) / codes.norm(dim=1)
    torch.testing.assert_close(along_z, ratio * along_code)


def test_rotation_has_a_finite_gradient_where_it_is_undefined() -> None:
    codes, g = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 2.0]])
    assert torch.equal(gradient(rotate, torch.zeros(1, 2), codes, g), g)
    assert torch.equal(gradient(rotate, torch.tensor([[1e-30, 0.0]]), codes, g), g)
    opposite = gradient(rotate, -codes, codes, g)
    torch.testing.assert_close(opposite, torch.tensor([[-1.0, 2.0]]))  # the reflection that takes u to q = -u
    assert bool((gradient(rotate, codes, torch.zeros(1, 2), g) == 0).all())


def test_unit_vectors_leave_zero_alone() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    units = unit_vectors(x)
    torch.testing.assert_close(units, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    units.sum().backward()
    assert x.grad is not None and bool(torch.isfinite(x.grad).all())
