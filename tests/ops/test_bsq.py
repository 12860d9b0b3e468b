"""BSQ: the nearest code on the sphere, the ids of LFQ, the gradient through the normalisation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import bsq, bsq_unpack, lfq
from vistok.ops.bsq import _op, _unpack_op

BACKENDS = ["reference", "cpu"]


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    z = torch.tensor([[3.0, 0.0, -4.0, 0.0], [torch.nan, torch.inf, 1e-38, -1.0]])
    codes, ids = bsq(z, backend=backend)
    assert codes.tolist() == [[0.5, -0.5, -0.5, -0.5], [-0.5, 0.5, 0.5, -0.5]] and ids.tolist() == [8, 6]
    assert bsq(z, bit_order="lsb", backend=backend)[1].tolist() == [1, 6]
    assert torch.equal(bsq_unpack(ids, 4, backend=backend), codes)
    assert bsq_unpack(torch.tensor([-1]), 4, backend=backend).tolist() == [[0, 0, 0, 0]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 100), st.integers(1, 62), st.sampled_from(["msb", "lsb"]))
def test_ids_are_those_of_lfq_and_codes_have_length_one(seed: int, rows: int, dim: int, order: str) -> None:
    z = randn(rows, dim, seed=seed)
    for backend in BACKENDS:
        codes, ids = bsq(z, bit_order=order, backend=backend)
        signs, expected = lfq(z, bit_order=order, backend=backend)
        assert torch.equal(ids, expected)
        torch.testing.assert_close(codes, signs / math.sqrt(dim))
        torch.testing.assert_close(codes.norm(dim=1), torch.ones(rows))
        assert torch.equal(bsq_unpack(ids, dim, bit_order=order, backend=backend), codes)


def test_the_code_is_the_nearest_of_all() -> None:
    z, codes = randn(200, 7), bsq_unpack(torch.arange(2**7), 7)
    assert torch.equal(bsq(z)[1], (z @ codes.T).argmax(1))


def through_units(z: Tensor, upstream: Tensor) -> Tensor:
    """The gradient of z / |z| by autograd, in float64."""
    z = z.detach().double().requires_grad_()
    return torch.autograd.grad(z / z.norm(dim=-1, keepdim=True), z, upstream.double())[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_the_gradient_is_that_of_the_unit_vector(size: float, dtype: torch.dtype) -> None:
    z, upstream = (size * randn(2, 5, 4)).to(dtype).requires_grad_(), randn(2, 5, 4, seed=1).to(dtype)
    codes, ids = bsq(z)
    assert codes.dtype == dtype and not ids.requires_grad
    found = torch.autograd.grad(codes, z, upstream)[0]
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found.double(), through_units(z, upstream), rtol=tolerance, atol=tolerance / size)


def test_a_zero_vector_hands_its_gradient_on() -> None:
    z, upstream = torch.zeros(1, 3, requires_grad=True), torch.tensor([[1.0, -2.0, 3.0]])
    assert torch.equal(torch.autograd.grad(bsq(z)[0], z, upstream)[0], upstream)


def test_a_compiled_graph_and_vmap_give_the_same() -> None:
    z = randn(3, 5, 6).requires_grad_()

    def there_and_back(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, ids = bsq(z)
        return codes, ids, bsq_unpack(ids, 6)

    torch.compiler.reset()
    expected = there_and_back(z)
    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")(z)
    mapped = torch.func.vmap(there_and_back)(z)
    for found in (compiled, mapped):
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    gradients = [torch.autograd.grad(out[0][..., 0].sum(), z)[0] for out in (compiled, mapped, expected)]
    assert torch.equal(gradients[0], gradients[2]) and torch.equal(gradients[1], gradients[2])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="bsq: expected 1..62 bits"):
        bsq(torch.zeros(2, 63))
    with pytest.raises(ValueError, match="bsq: expected bit order in .*, got 'big'"):
        bsq(torch.zeros(2, 4), bit_order="big")
    with pytest.raises(ValueError, match="bsq_unpack: expected 1..62 bits .*, got 0"):
        bsq_unpack(torch.tensor([1]), 0)
    with pytest.raises(ValueError, match="bsq_unpack: expected ids in 0..15, or -1"):
        bsq_unpack(torch.tensor([-2]), 4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_they_are_lawful_ops(backend: str) -> None:
    torch.library.opcheck(_op, (randn(2, 3, 4).requires_grad_(), "msb", backend))
    torch.library.opcheck(_op, (randn(2, 3, 4).bfloat16()[:, :0], "lsb", backend))
    torch.library.opcheck(_unpack_op, (torch.tensor([[0, 15], [-1, 7]]), 4, "msb", backend))
