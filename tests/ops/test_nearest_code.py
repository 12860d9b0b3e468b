"""Nearest code: equal to float64 brute force, ties to the lowest index, at every scale, in bounded memory."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vistok.ops import nearest_code
from vistok.ops.nearest_code import PRECISIONS, _op, _reference


def brute_force(x: Tensor, codebook: Tensor, metric: str) -> Tensor:
    """Distances in float64, all of them; the first of equal ones (which argmin takes on the CPU)."""
    x, codebook = x.double(), codebook.double()
    if metric == "l2":
        return (x[:, None] - codebook).square().sum(-1).argmin(1)
    if metric == "cosine":
        codebook = codebook / codebook.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return (x @ codebook.T).argmax(1)


def integers(seed: int, *shape: int, largest: int = 2) -> Tensor:
    """Small whole numbers: float32 computes their distances exactly, and many are equal."""
    return torch.randint(-largest, largest + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(0, 30),
    st.integers(1, 40),
    st.integers(1, 6),
    st.sampled_from(["l2", "dot"]),
    st.sampled_from(PRECISIONS),
)
def test_it_equals_brute_force_with_ties(
    seed: int, rows: int, codes: int, dim: int, metric: str, precision: str
) -> None:
    x, codebook = integers(seed, rows, dim), integers(seed + 1, codes, dim)
    for backend in ("reference", "cpu"):
        found = nearest_code(x, codebook, metric, precision=precision, backend=backend)
        assert torch.equal(found, brute_force(x, codebook, metric))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 40),
    st.integers(1, 80),
    st.integers(1, 20),
    st.sampled_from(["l2", "cosine", "dot"]),
    st.sampled_from([0.0, 30.0, 1e4]),
    st.sampled_from([1e-3, 1.0]),
)
def test_certified_ids_are_the_same_on_every_back_end_and_those_of_float64(
    seed: int, rows: int, codes: int, dim: int, metric: str, offset: float, spread: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    codebook = offset + spread * torch.randn(codes, dim, generator=generator)
    codebook = torch.cat([codebook, codebook[: codes // 3]])
    x = codebook[torch.randint(0, codes, (rows,), generator=generator)]
    x = x + spread / 10 * torch.randn(rows, dim, generator=generator)
    found = [nearest_code(x, codebook, metric, precision="certified", backend=b) for b in ("reference", "cpu")]
    assert torch.equal(*found)
    best = brute_force(x, codebook, metric)
    lost = float64_score(x, codebook, best, metric) - float64_score(x, codebook, found[0], metric)
    assert float(lost.max()) <= 1e-13 * float(x.double().square().sum(1).max())
    # Copies of a code have equal scores to the bit: the first one must be found.
    assert int(found[0].max()) < codes


def float64_score(x: Tensor, codebook: Tensor, index: Tensor, metric: str) -> Tensor:
    """Larger is nearer."""
    x, codes = x.double(), codebook.double()[index]
    if metric == "l2":
        return -(x - codes).square().sum(1)
    return (x * codes).sum(1) / (codes.norm(dim=1) if metric == "cosine" else 1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["random", "clustered", "offset"])
def test_certified_ids_are_the_float64_argmin_of_a_hundred_thousand_rows(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    codebook = torch.randn(1024, 16, generator=generator)
    x = torch.randn(100_000, 16, generator=generator)
    if kind == "clustered":
        codebook = codebook[:16].repeat(64, 1) + 1e-3 * codebook
        x = codebook[torch.randint(0, 1024, (100_000,), generator=generator)] + 1e-4 * x
    if kind == "offset":
        codebook, x = 30 + 1e-3 * codebook, 30 + 1e-3 * x
    truth = torch.cat(
        [(part.double()[:, None] - codebook.double()).square().sum(-1).argmin(1) for part in x.split(500)]
    )
    for backend in ("reference", "cpu"):
        assert torch.equal(nearest_code(x, codebook, precision="certified", backend=backend), truth)


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("codes", [1023, 1024, 1025, 9001])
def test_it_equals_brute_force_when_codes_and_rows_do_not_fill_their_tiles(codes: int, metric: str) -> None:
    x, codebook = integers(0, 1030, 3, largest=9), integers(1, codes, 3, largest=9)
    for backend in ("reference", "cpu"):
        assert torch.equal(nearest_code(x, codebook, metric, backend=backend), brute_force(x, codebook, metric))


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_a_tie_across_tiles_goes_to_the_lowest_index(metric: str) -> None:
    codebook = torch.zeros(9000, 2)
    codebook[:, 1] = -1.0
    codebook[[77, 5000, 8999]] = torch.tensor([1.0, 0.0])
    for backend in ("reference", "cpu"):
        assert nearest_code(torch.tensor([[1.0, 0.0]]), codebook, metric, backend=backend).tolist() == [77]


@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_it_is_as_near_as_brute_force_up_to_rounding(metric: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(500, 16, generator=generator), torch.randn(3000, 16, generator=generator)
    found, best = nearest_code(x, codebook, metric), brute_force(x, codebook, metric)
    codes = torch.nn.functional.normalize(codebook, dim=1) if metric == "cosine" else codebook
    bias = codes.double().square().sum(1) / 2 if metric == "l2" else codes.new_zeros(len(codes)).double()

    def score(ids: Tensor) -> Tensor:
        return bias[ids] - (x.double() * codes[ids].double()).sum(1)

    torch.testing.assert_close(score(found), score(best), rtol=0, atol=1e-5)
    assert float((found == best).float().mean()) > 0.99


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_half_inputs_are_searched_in_float32_and_double_in_double(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(n, 8, generator=generator).to(dtype) for n in (300, 700))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = nearest_code(x, codebook)
    assert torch.equal(found, brute_force(x, codebook, "l2"))


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize(("codes", "dim"), [(16384, 8), (1000, 32), (256, 4)])
def test_every_code_is_its_own_nearest(codes: int, dim: int, scale: float) -> None:
    codebook = scale * torch.randn(codes, dim, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(codes)[: 3 * 1024]
    for metric in ("l2", "cosine"):
        assert torch.equal(nearest_code(codebook[rows], codebook, metric), rows)


def test_codes_of_scale_one_over_k_are_told_apart() -> None:
    codebook = (torch.rand(16384, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1) / 16384
    assert torch.equal(nearest_code(codebook[:3000], codebook), torch.arange(3000))


def test_it_never_holds_rows_times_codes() -> None:
    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            out = func(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else (out,):
                self.numel = max(self.numel, tensor.numel() if isinstance(tensor, Tensor) else 0)
            return out

    x, codebook = torch.randn(3000, 4), torch.randn(9000, 4)
    for precision in ("exact", "certified"):
        with Largest() as seen:
            _reference(x, codebook, "l2", precision)
        assert 0 < seen.numel <= 512 * 1024


def test_leading_axes_stay_and_no_rows_are_fine() -> None:
    codebook = torch.eye(3)
    assert nearest_code(torch.eye(3).reshape(1, 3, 1, 3), codebook).tolist() == [[[0], [1], [2]]]
    assert nearest_code(torch.zeros(2, 0, 3), codebook).shape == (2, 0)
    assert nearest_code(torch.eye(3)[1], codebook).tolist() == 1


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("precision", ["exact", "certified"])
@pytest.mark.parametrize("metric", ["l2", "cosine", "dot"])
def test_what_is_not_finite_never_wins(metric: str, precision: str, backend: str) -> None:
    nan, inf = torch.nan, torch.inf
    codebook = torch.tensor([[nan, 0.0], [inf, 1.0], [1.0, 1.0], [2.0, -1.0]])
    x = torch.tensor([[2.0, -1.0], [nan, -1.0], [inf, 1.0], [1.0, 2.0]])
    found = nearest_code(x, codebook, metric, precision=precision, backend=backend)
    assert found.tolist() == [3, 0, 0, 2]
    nothing = nearest_code(x, codebook[:2], metric, precision=precision, backend=backend)
    assert nothing.tolist() == [0, 0, 0, 0]


def test_the_score_is_that_of_the_two_vectors_and_carries_gradients() -> None:
    codebook = torch.tensor([[3.0, 4.0], [0.0, 1.0]], requires_grad=True)
    x = torch.tensor([[3.0, 3.0]], requires_grad=True)
    for metric, expected in (("l2", 1.0), ("cosine", 21 / (5 * 18**0.5)), ("dot", 21.0)):
        index, score = nearest_code(x, codebook, metric, return_score=True)
        assert index.tolist() == [0] and not index.requires_grad
        torch.testing.assert_close(score, torch.tensor([expected]))
    nearest_code(x, codebook, return_score=True)[1].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0.0, -2.0]]
    assert codebook.grad is not None and codebook.grad.tolist() == [[0.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_it_is_a_lawful_op(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, codebook = torch.randn(2, 3, 4, generator=generator), torch.randn(5, 4, generator=generator)
    for precision in PRECISIONS:
        torch.library.opcheck(_op, (x, codebook, "l2", precision, backend))
        torch.library.opcheck(_op, (x.bfloat16()[:, :0], codebook, "cosine", precision, backend))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected precision in .*, got 'half'"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 3), precision="half")
    with pytest.raises(ValueError, match="expected x .* and codebook"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 2))
    with pytest.raises(ValueError, match="K > 0"):
        nearest_code(torch.zeros(2, 3), torch.zeros(0, 3))
    with pytest.raises(ValueError, match="expected metric 'l2', 'cosine' or 'dot', got 'l1'"):
        nearest_code(torch.zeros(2, 3), torch.zeros(4, 3), "l1")
