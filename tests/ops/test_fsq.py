"""FSQ: ids of exact arithmetic on every back end, codes and gradients of the paper's formula, ids and back."""

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import fsq, fsq_unpack
from vistok.ops.fsq import _backward_op, _channels, _op, _rounded_down, _unpack_op

BACKENDS = ["reference", "cpu"]
PUBLISHED = [8, 8, 8, 5, 5, 5]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def bounded(z: Tensor, levels: list[int]) -> Tensor:
    """b of the paper over floor(L/2), in the dtype of z."""
    level = torch.tensor(levels, dtype=z.dtype)
    half = (level - 1) * 1.001 / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0).to(z.dtype)
    return (torch.tanh(z + torch.atanh(offset / half)) * half - offset) / (level // 2)


@st.composite
def level_lists(draw: st.DrawFn) -> list[int]:
    """Level counts whose product fits int64, few of them large."""
    levels: list[int] = []
    for level in draw(st.lists(st.integers(2, 20) | st.integers(2, 1500), min_size=1, max_size=20)):
        levels += [level] if math.prod(levels) * level < 2**63 else []
    return levels


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    # Level 4 counts -2..1, level 3 counts -1..1; the first channel varies fastest.
    z = torch.tensor([[0.0, 0.0], [9.0, -9.0], [-9.0, 9.0]])
    codes, ids = fsq(z, [4, 3], backend=backend)
    assert codes.tolist() == [[0.0, 0.0], [0.5, -1.0], [-1.0, 1.0]]
    assert ids.tolist() == [2 + 4 * 1, 3 + 4 * 0, 0 + 4 * 2]
    assert torch.equal(fsq_unpack(ids, [4, 3], backend=backend), codes)


@settings(max_examples=25, deadline=None)
@given(level_lists(), st.integers(0, 2**31), st.integers(0, 70), st.sampled_from([0.1, 1.0, 4.0]))
def test_back_ends_agree_with_the_formula_and_the_way_back_is_exact(
    levels: list[int], seed: int, rows: int, spread: float
) -> None:
    z = spread * randn(rows, len(levels), seed=seed)
    codes, ids = fsq(z, levels, backend="reference")
    scale = torch.tensor(levels) // 2
    # tanh reaches 1, and with more than 1000 levels eps lifts it past the last one.
    rounded = (bounded(z.double(), levels) * scale).round().clamp(-scale, torch.tensor(levels) - 1 - scale)
    assert torch.equal(codes, rounded.float() / scale)
    assert torch.equal(fsq_unpack(ids, levels, backend="reference"), codes)
    assert rows == 0 or 0 <= int(ids.min()) <= int(ids.max()) < math.prod(levels)
    for other, expected in zip(fsq(z, levels, backend="cpu"), (codes, ids), strict=True):
        assert torch.equal(other, expected)
    assert torch.equal(fsq_unpack(ids, levels, backend="cpu"), codes)
    assert torch.equal(fsq(z.double(), levels)[1], ids)


def exact_borders(level: int) -> Iterator[Decimal]:
    """Where the digit grows, to 40 digits: atanh x = ln((1+x)/(1-x)) / 2."""

    def atanh(x: Decimal) -> Decimal:
        return ((1 + x) / (1 - x)).ln() / 2

    half, offset = Decimal(level - 1) * Decimal(1 + 1e-3) / 2, Decimal("0.5") * (level % 2 == 0)
    for m in range(level - 1):
        yield atanh((m + Decimal("0.5") - level // 2 + offset) / half) - atanh(offset / half)


@pytest.mark.parametrize("level", [*range(2, 33), 64, 128, 255, 256])
def test_borders_are_so_far_from_float32_numbers_that_no_library_can_move_an_id(level: int) -> None:
    with localcontext(prec=40):
        exact = list(exact_borders(level))
        below = _channels((level,), torch.float32, torch.device("cpu")).borders[0, : level - 1]
        above = below.nextafter(torch.tensor(math.inf))
        for low, border, high in zip(below.tolist(), exact, above.tolist(), strict=True):
            # A float64 of this size is known to some 1e-16 of itself, atanh and the shift to a few times that.
            margin = Decimal("1e-14") * max(abs(border), Decimal("0.01"))
            assert Decimal(low) + margin < border < Decimal(high) - margin


def test_borders_are_rounded_down() -> None:
    exact = torch.tensor([0.1, -0.1, 0.25, 1 / 3, math.inf], dtype=torch.float64)
    rounded = _rounded_down(exact, torch.float32)
    assert bool((rounded.double() <= exact).all()) and bool((rounded.nextafter(torch.tensor(9e9)) > exact)[:4].all())
    assert torch.equal(_rounded_down(exact, torch.float64), exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_value_gets_its_level_wherever_it_lies(backend: str) -> None:
    z = randn(1, 6).expand(1000, 6)
    for rows in (1, 7, 16, 17, 1000):
        codes, ids = fsq(z[:rows], PUBLISHED, backend=backend)
        assert len(ids.unique()) == 1 and torch.equal(codes, codes[:1].expand(rows, 6))


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_has_the_lowest_level_and_infinity_the_last(backend: str) -> None:
    codes, ids = fsq(torch.tensor([[torch.nan, torch.inf], [-torch.inf, torch.nan]]), [5, 4], backend=backend)
    assert ids.tolist() == [0 + 5 * 3, 0] and codes.tolist() == [[-1.0, 0.5], [-1.0, -1.0]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_gradient_is_that_of_the_bounded_value(dtype: torch.dtype, backend: str) -> None:
    z, upstream = 2 * randn(2, 9, 6).to(dtype), randn(2, 9, 6, seed=1).to(dtype)
    z.requires_grad_()
    exact = z.detach().double().requires_grad_()
    expected = torch.autograd.grad(bounded(exact, PUBLISHED), exact, upstream.double())[0]
    codes, ids = fsq(z, PUBLISHED, backend=None if dtype == torch.float64 else backend)
    found = torch.autograd.grad(codes, z, upstream)[0]
    assert found.dtype == codes.dtype == dtype and not ids.requires_grad
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance / 10)


def test_a_compiled_graph_gives_the_same_ids_and_gradients() -> None:
    z = randn(5, 6).requires_grad_()

    def step(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        codes, ids = fsq(z, PUBLISHED)
        return codes, ids, fsq_unpack(ids, PUBLISHED)

    torch.compiler.reset()
    found = torch.compile(step, fullgraph=True, backend="aot_eager")(z)
    expected = step(z)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(*(torch.autograd.grad(out[0].square().sum(), z)[0] for out in (found, expected)))


def test_it_maps_over_a_batch_and_serves_training_after_inference_mode() -> None:
    levels, z = [6, 7, 9], randn(4, 5, 3)
    with torch.inference_mode():
        expected = fsq(z, levels)
    found = torch.func.vmap(lambda row: fsq(row, levels))(z)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(torch.func.vmap(lambda ids: fsq_unpack(ids, levels))(expected[1]), expected[0])
    z.requires_grad_()
    fsq(z, levels)[0].sum().backward()
    assert z.grad is not None and bool((z.grad > 0).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_ids_wider_than_32_bits_come_back(backend: str) -> None:
    levels = [1000, 999, 998, 997, 996, 995]
    ids = torch.tensor([0, -1, 2**31, 2**40 + 12345, math.prod(levels) - 1])
    codes = fsq_unpack(ids, levels, backend=backend)
    assert codes[0].tolist() == [-1.0] * 6 and codes[1].tolist() == [0.0] * 6
    place = torch.tensor([math.prod(levels[:i]) for i in range(6)])
    digits = (codes.double() * (torch.tensor(levels) // 2)).round().long() + torch.tensor(levels) // 2
    assert torch.equal((digits * place).sum(-1)[[0, 2, 3, 4]], ids[[0, 2, 3, 4]])


def test_mistakes_are_named() -> None:
    for levels in ([], [8, 1], [2] * 63, [65537]):
        with pytest.raises(ValueError, match="fsq: expected levels >= 2"):
            fsq(torch.zeros(2, len(levels)), levels)
        with pytest.raises(ValueError, match="fsq: expected levels >= 2"):
            fsq_unpack(torch.zeros(2, dtype=torch.int64), levels)
    with pytest.raises(ValueError, match=r"fsq: expected float vectors \[..., 2\], got \[3, 4\]"):
        fsq(torch.zeros(3, 4), [8, 8])
    with pytest.raises(ValueError, match="fsq: expected float vectors .*int64"):
        fsq(torch.zeros(3, 2, dtype=torch.int64), [8, 8])
    with pytest.raises(ValueError, match=r"fsq_unpack: expected ids in 0..63, or -1 .*, got 0..64"):
        fsq_unpack(torch.tensor([0, 64]), [8, 8])
    with pytest.raises(ValueError, match="fsq_unpack: expected int64 ids, got torch.int32"):
        fsq_unpack(torch.zeros(2, dtype=torch.int32), [8, 8])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_they_are_lawful_ops(backend: str) -> None:
    z = randn(2, 3, 4)
    torch.library.opcheck(_op, (z.clone().requires_grad_(), [8, 5, 5, 5], backend))
    torch.library.opcheck(_op, (z.bfloat16()[:, :0], [8, 5, 5, 5], backend))
    torch.library.opcheck(_backward_op, (randn(2, 3, 4), z, [8, 5, 5, 5], backend))
    torch.library.opcheck(_unpack_op, (torch.tensor([[0, 999], [-1, 7]]), [8, 5, 5, 5], backend))
