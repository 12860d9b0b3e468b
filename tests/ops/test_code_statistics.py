"""Code statistics: by hand, gradients against autograd, the moving average of the paper, mistakes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import code_counts, code_statistics
from vistok.ops.code_statistics import _op, moving_average

X = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [9.0, 9.0]])
IDS = torch.tensor([0, 0, 2, -1])
CODES = torch.tensor([[2.0, 0.0], [7.0, 7.0], [0.0, 4.0]])
BACKENDS = ["reference", "cpu"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    found = code_statistics(X, IDS, CODES, backend=backend)
    assert found.counts.tolist() == [2, 0, 1]
    assert found.sums.tolist() == [[4.0, 0.0], [0.0, 0.0], [0.0, 5.0]]
    assert float(found.squared_error) == 3.0


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 40), st.integers(1, 20), st.integers(1, 6), st.sampled_from(BACKENDS))
def test_counts_are_code_counts_and_batches_add_up(seed: int, rows: int, codes: int, dim: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-4, 5, (rows, dim), generator=generator).float()
    ids = torch.randint(-1, codes, (rows,), generator=generator)
    codebook = torch.zeros(codes, dim)
    whole = code_statistics(x, ids, codebook, backend=backend)
    assert torch.equal(whole.counts, code_counts(ids, codes))
    parts = [code_statistics(x[half], ids[half], codebook, backend=backend) for half in (slice(7), slice(7, None))]
    assert all(torch.equal(a + b, total) for a, b, total in zip(*parts, whole, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_formula(backend: str) -> None:
    def gradients(squared_error: Tensor, sums: Tensor, x: Tensor, codes: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(0.3 * squared_error + (sums * torch.arange(6).reshape(3, 2)).sum(), (x, codes))

    x, codes = X.clone().requires_grad_(), CODES.clone().requires_grad_()
    won = torch.tensor([[1.0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]])
    expected = gradients((x[:3] - codes[IDS[:3]]).square().sum(), won @ x, x, codes)
    found = code_statistics(x, IDS, codes, backend=backend)
    torch.testing.assert_close(gradients(found.squared_error, found.sums, x, codes), expected)
    assert not found.counts.requires_grad


def test_float64_stays_float64() -> None:
    found = code_statistics(X.double(), IDS, CODES.double())
    assert found.sums.dtype == found.squared_error.dtype == torch.float64


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_threads_changes_nothing(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codes = torch.randn(5000, 7, generator=generator), torch.randn(50, 7, generator=generator)
    ids = torch.randint(0, 50, (5000,), generator=generator)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(code_statistics(x, ids, codes, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_the_moving_average_is_the_papers() -> None:
    counts, sums = torch.tensor([1.0, 4.0, 1.0]), torch.tensor([[2.0, 0.0], [28.0, 28.0], [0.0, 4.0]])
    counts, sums, codes = moving_average(counts, sums, code_statistics(X, IDS, CODES), decay=0.75, eps=0.0)
    torch.testing.assert_close(counts, torch.tensor([1.25, 3.0, 1.0]))
    torch.testing.assert_close(sums, torch.tensor([[2.5, 0.0], [21.0, 21.0], [0.0, 4.25]]))
    torch.testing.assert_close(codes, torch.tensor([[2.0, 0.0], [7.0, 7.0], [0.0, 4.25]]))
    smoothed = moving_average(counts, sums, code_statistics(X, IDS, CODES), decay=1.0, eps=0.1)[2]
    torch.testing.assert_close(smoothed[1], torch.full((2,), 21 / (3.1 / 5.55 * 5.25)))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected x .*, indices .* and codebook"):
        code_statistics(X, IDS[:2], CODES)
    with pytest.raises(ValueError, match="int64 indices, got .*int32"):
        code_statistics(X, IDS.int(), CODES)
    with pytest.raises(ValueError, match="code_statistics: expected ids in 0..2, or -1"):
        code_statistics(X, IDS + 1, CODES)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    x, codes = X.clone().requires_grad_(), CODES.clone().requires_grad_()
    torch.library.opcheck(_op, (x, IDS, codes, backend))
    torch.library.opcheck(_op, (X.bfloat16().reshape(2, 2, 2), IDS.reshape(2, 2), CODES, backend))
