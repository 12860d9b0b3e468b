"""Merge and unmerge: by hand, the token-tensor's own averages, gradients, mistakes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import bipartite_match, merge, unmerge
from vistok.ops.merge import _op
from vistok.tokens import Assignment, TokenSpec, TokenTensor

BACKENDS = ["reference", "cpu"]
X = torch.tensor([[[1.0, 2.0], [3.0, 0.0], [5.0, 7.0], [torch.nan, 1.0]]])
SLOT = Assignment(torch.tensor([[0, 2, 0, -1]]), 3)
SIZES = torch.tensor([[1.0, 5.0, 3.0, 2.0]])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    values, sizes = merge(X, SLOT, SIZES, backend=backend)
    assert values.tolist() == [[[4.0, 5.75], [0.0, 0.0], [3.0, 0.0]]]
    assert sizes.tolist() == [[4.0, 0.0, 5.0]]
    assert merge(X, SLOT, backend=backend).values.tolist() == [[[3.0, 4.5], [0.0, 0.0], [3.0, 0.0]]]
    spread = unmerge(values, SLOT, -1.0, backend=backend)
    assert spread.tolist() == [[[4.0, 5.75], [3.0, 0.0], [4.0, 5.75], [-1.0, -1.0]]]


def test_it_averages_as_a_token_tensor_does() -> None:
    embeds, sizes = draw(0, 2, 9, 4), draw(1, 2, 9).abs() + 0.1
    lengths = torch.tensor([9, 6])
    assignment = bipartite_match(embeds, 3, lengths=lengths)
    tokens = TokenTensor(TokenSpec("a", dim=4), embeds=embeds, sizes=sizes, lengths=lengths).merge(assignment)
    assert tokens.embeds is not None and tokens.sizes is not None and tokens.valid_lengths.tolist() == [6, 3]
    for backend in BACKENDS:
        found = merge(embeds, assignment, sizes, backend=backend)
        torch.testing.assert_close(found.values, tokens.embeds)
        torch.testing.assert_close(found.sizes, tokens.sizes)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 20), st.integers(1, 6), st.sampled_from(BACKENDS))
def test_merging_keeps_the_sum_and_merging_again_what_was_merged(
    seed: int, batch: int, tokens: int, count: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-9, 10, (batch, tokens, 3), generator=generator).float()
    sizes = torch.randint(1, 5, (batch, tokens), generator=generator).float()
    assignment = Assignment(torch.randint(0, count, (batch, tokens), generator=generator), count)
    found = merge(x, assignment, sizes, backend=backend)
    total = (x * sizes[..., None]).sum(1)
    torch.testing.assert_close((found.values * found.sizes[..., None]).sum(1), total, atol=1e-4, rtol=1e-5)
    equal = unmerge(found.values, assignment, backend=backend)
    torch.testing.assert_close(merge(equal, assignment, sizes, backend=backend).values, found.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_cpu_gives_the_bits_of_the_reference_for_any_number_of_threads(dtype: torch.dtype) -> None:
    x = (30 * draw(0, 3, 577, 700)).to(dtype)
    x[:, ::5] *= 1e-6  # subnormal as float16
    slot = torch.randint(-1, 200, (3, 577), generator=torch.Generator().manual_seed(1))
    sizes = draw(2, 3, 577).abs()
    expected = merge(x, Assignment(slot, 200), sizes, backend="reference")
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found = merge(x, Assignment(slot, 200), sizes, backend="cpu")
            assert torch.equal(found.values, expected.values) and torch.equal(found.sizes, expected.sizes)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("number", [65504.0, 65519.0, 65520.0, 7e4, 6e-8, 2.9e-8, 3e-8, 2.0**-14, 0.1, torch.inf, 3e38])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_results_are_rounded_as_torch_rounds(dtype: torch.dtype, number: float) -> None:
    """Means of two numbers lie between those that half precision knows."""
    numbers = number * torch.tensor([1.0, -1.0, 0.999, 1.001, torch.nan])
    x = torch.stack([numbers, 0.997 * numbers])[None].to(dtype)
    sizes = torch.tensor([[1.0, 3.0]])
    pair = Assignment(torch.zeros(1, 2, dtype=torch.int64), 1)
    found = [merge(x, pair, sizes, backend=backend).values for backend in BACKENDS]
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_stays_alone_stays_as_it_is(backend: str) -> None:
    x = draw(0, 2, 30, 7)
    order = torch.arange(30).flip(0).repeat(2, 1)
    found = merge(x, Assignment(order, 30), torch.full((2, 30), 0.3), backend=backend)
    assert torch.equal(found.values, x.flip(1))


def test_gradients_of_values_and_sizes() -> None:
    x = X.double().nan_to_num().requires_grad_()
    sizes = SIZES.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, sizes: merge(x, SLOT, sizes), (x, sizes))
    assert torch.autograd.gradgradcheck(lambda x, sizes: merge(x, SLOT, sizes), (x, sizes))
    y = draw(0, 1, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda y: unmerge(y, SLOT, 2.0), y)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_back_end_passes_gradients_and_none_to_dropped_tokens(dtype: torch.dtype, backend: str) -> None:
    x, sizes = X.to(dtype).clone().requires_grad_(), SIZES.clone().requires_grad_()
    values, totals = merge(x, SLOT, sizes, backend=backend)
    (values.float().sum() + 2 * totals.sum()).backward()
    assert x.grad is not None and sizes.grad is not None and x.grad.dtype == dtype
    assert x.grad.tolist() == [[[0.25, 0.25], [1.0, 1.0], [0.75, 0.75], [0.0, 0.0]]]
    expected = torch.tensor([[2 + (-3.0 - 3.75) / 4, 2.0, 2 + (1.0 + 1.25) / 4, 0.0]])
    torch.testing.assert_close(sizes.grad, expected, atol=0.02 if dtype == torch.bfloat16 else 1e-6, rtol=0)


def test_float64_stays_float64() -> None:
    assert merge(X.double(), SLOT).sizes.dtype == torch.float64
    assert merge(X, SLOT, SIZES.double()).values.dtype == torch.float32


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="merge: expected float tokens .*int64"):
        merge(X.nan_to_num().long(), SLOT)
    with pytest.raises(ValueError, match=r"merge: expected slots int64 \[1, 3\]"):
        merge(X[:, :3], SLOT)
    with pytest.raises(ValueError, match=r"merge: expected float sizes \[1, 4\]"):
        merge(X, SLOT, SIZES[:, :2])
    with pytest.raises(ValueError, match=r"unmerge: expected slots \[B, 3, ...\], got \[1, 4, 2\]"):
        unmerge(X, SLOT)
    with pytest.raises(ValueError, match="unmerge: expected slots int64"):
        unmerge(X[:, :3].repeat(2, 1, 1), SLOT)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="merge: expected ids in 0..1"):
            merge(X, Assignment(SLOT.slot, 2), backend=backend)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    x, sizes = X.nan_to_num().requires_grad_(), SIZES.clone().requires_grad_()
    torch.library.opcheck(_op, (x, SLOT.slot, sizes, 3, backend))
    torch.library.opcheck(_op, (X.bfloat16()[..., 0], SLOT.slot, SIZES, 3, backend))
