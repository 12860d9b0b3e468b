"""LFQ: signs, bits and bit orders, the gradient, ids and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import lfq, lfq_unpack
from vistok.ops.lfq import _op, _unpack_op

BACKENDS = ["reference", "cpu"]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_signs_and_the_two_bit_orders_by_hand(backend: str) -> None:
    z = torch.tensor([[0.2, -3.0, -0.1, -1.0], [0.0, -0.0, 1e-38, torch.inf], [torch.nan, 1.0, -torch.inf, 0.0]])
    signs = [[1, -1, -1, -1], [-1, -1, 1, 1], [-1, 1, -1, -1]]
    for order, expected in (("msb", [8, 3, 4]), ("lsb", [1, 12, 2])):
        codes, ids = lfq(z, bit_order=order, backend=backend)
        assert codes.tolist() == signs and ids.tolist() == expected
        assert lfq_unpack(ids, 4, bit_order=order, backend=backend).tolist() == signs
    assert lfq_unpack(torch.tensor([-1]), 3, backend=backend).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("dim", range(1, 17))
def test_every_id_comes_back(dim: int, order: str, backend: str) -> None:
    ids = torch.arange(2**dim)
    codes = lfq_unpack(ids, dim, bit_order=order, backend=backend)
    assert torch.equal(lfq(0.3 * codes, bit_order=order, backend=backend)[1], ids)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 300), st.integers(1, 62), st.sampled_from(["msb", "lsb"]))
def test_back_ends_agree(seed: int, rows: int, dim: int, order: str) -> None:
    z = randn(rows, dim, seed=seed)
    codes, ids = lfq(z, bit_order=order, backend="reference")
    assert torch.equal(codes, torch.where(z > 0, 1.0, -1.0))
    assert torch.equal(lfq_unpack(ids, dim, bit_order=order, backend="reference"), codes)
    assert all(torch.equal(a, b) for a, b in zip(lfq(z, bit_order=order, backend="cpu"), (codes, ids), strict=True))
    assert torch.equal(lfq_unpack(ids, dim, bit_order=order, backend="cpu"), codes)
    reversed_ids = lfq(z.flip(-1), bit_order={"msb": "lsb", "lsb": "msb"}[order])[1]
    assert torch.equal(reversed_ids, ids)


def test_62_bits_fit() -> None:
    codes, ids = lfq(torch.ones(62))
    assert int(ids) == 2**62 - 1
    assert torch.equal(lfq_unpack(ids, 62), codes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_the_gradient_is_handed_on_unchanged(dtype: torch.dtype) -> None:
    z, upstream = randn(5, 4).to(dtype).requires_grad_(), randn(5, 4, seed=1).to(dtype)
    codes, ids = lfq(z)
    assert codes.dtype == dtype and not ids.requires_grad
    assert torch.equal(torch.autograd.grad(codes, z, upstream)[0], upstream)


def test_a_compiled_graph_and_vmap_give_the_same() -> None:
    z = randn(3, 5, 6)

    def there_and_back(z: Tensor) -> tuple[Tensor, Tensor]:
        ids = lfq(z, bit_order="lsb")[1]
        return ids, lfq_unpack(ids, 6, bit_order="lsb")

    torch.compiler.reset()
    expected = there_and_back(z)
    for other in (torch.compile(there_and_back, fullgraph=True, backend="aot_eager"), torch.func.vmap(there_and_back)):
        assert all(torch.equal(a, b) for a, b in zip(other(z), expected, strict=True))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="lfq: expected 1..62 bits .*, got 63"):
        lfq(torch.zeros(2, 63))
    with pytest.raises(ValueError, match="lfq: expected 1..62 bits .*, got 0"):
        lfq(torch.zeros(2, 0))
    with pytest.raises(ValueError, match="lfq_unpack: expected bit order in .*, got 'big'"):
        lfq_unpack(torch.tensor([1]), 4, bit_order="big")
    with pytest.raises(ValueError, match="lfq: expected float vectors .*int64"):
        lfq(torch.zeros(2, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="lfq_unpack: expected ids in 0..15, or -1"):
        lfq_unpack(torch.tensor([16]), 4)
    with pytest.raises(ValueError, match="lfq_unpack: expected int64 ids"):
        lfq_unpack(torch.tensor([1.0]), 4)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_they_are_lawful_ops(backend: str) -> None:
    torch.library.opcheck(_op, (randn(2, 3, 4).requires_grad_(), "msb", backend))
    torch.library.opcheck(_op, (randn(2, 3, 4).bfloat16()[:, :0], "lsb", backend))
    torch.library.opcheck(_unpack_op, (torch.tensor([[0, 15], [-1, 7]]), 4, "msb", backend))
