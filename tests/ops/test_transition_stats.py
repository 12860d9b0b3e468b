"""Transition statistics: by hand, gradients, properties, threads, mistakes."""

from importlib import import_module

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import transition_stats
from vistok.ops.transition_stats import _op

BACKENDS = ["reference", "cpu"]
A = torch.tensor([[3.0, 4.0], [1.0, 0.0], [0.0, 0.0]])
B = torch.tensor([[1.0, 2.0], [0.0, -2.0], [5.0, 1.0]])


def random(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    found = transition_stats(A, B, backend=backend)
    assert found.a_squared.tolist() == [25, 1, 0]
    assert found.b_squared.tolist() == [5, 4, 26]
    assert found.dot.tolist() == [11, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_every_number_of_16_bits_is_read_as_it_is(dtype: torch.dtype) -> None:
    a = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)[:, None]
    found = transition_stats(a, torch.ones_like(a), backend="cpu")
    torch.testing.assert_close(found.dot, a[:, 0].float(), rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(0, 5), max_size=3),
    st.integers(1, 70),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.sampled_from(BACKENDS),
)
def test_ratio_and_cosine_are_torchs(seed: int, shape: list[int], dim: int, dtype: torch.dtype, backend: str) -> None:
    a, b = random(seed, *shape, dim).to(dtype), random(seed + 1, *shape, dim).to(dtype)
    found = transition_stats(a, b, backend=backend)
    norms = (a.double().norm(dim=-1), b.double().norm(dim=-1))
    torch.testing.assert_close(found.a_squared.sqrt(), norms[0].float())
    torch.testing.assert_close(found.b_squared.sqrt(), norms[1].float())
    cosine = torch.cosine_similarity(a.double(), b.double(), dim=-1)
    torch.testing.assert_close(
        found.dot / (found.a_squared * found.b_squared).sqrt(), cosine.float(), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("backend", BACKENDS)
def test_layers_add_up_to_vectors_side_by_side(backend: str) -> None:
    a, b = random(0, 2, 7, 12).round(), random(1, 2, 7, 12).round()
    first = transition_stats(a[..., :5], b[..., :5], backend=backend)
    both = transition_stats(a[..., 5:], b[..., 5:], add_to=first, backend=backend)
    assert all(map(torch.equal, both, transition_stats(a, b, backend=backend)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_are_those_of_the_formula(backend: str) -> None:
    a, b = (random(seed, 2, 3, 5).requires_grad_() for seed in (0, 1))
    weights = random(2, 3, 2, 3)
    found = torch.stack(transition_stats(a, b, backend=backend))
    expected = torch.stack([(a * a).sum(-1), (b * b).sum(-1), (a * b).sum(-1)])
    for of_found, of_expected in zip(
        torch.autograd.grad((found * weights).sum(), (a, b)),
        torch.autograd.grad((expected * weights).sum(), (a, b)),
        strict=True,
    ):
        torch.testing.assert_close(of_found, of_expected)


def test_gradients_of_first_and_second_order_in_float64() -> None:
    a, b = (random(seed, 2, 3).double().requires_grad_() for seed in (0, 1))
    assert torch.autograd.gradcheck(transition_stats, (a, b))
    assert torch.autograd.gradgradcheck(transition_stats, (a, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(dtype: torch.dtype) -> None:
    a, b = (random(seed, 301, 1030).to(dtype) for seed in (0, 1))
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(torch.stack(transition_stats(a, b, backend="cpu")))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    torch.testing.assert_close(found[0], torch.stack(transition_stats(a.double(), b.double())).float())


def test_the_reference_does_not_depend_on_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = random(0, 50, 9), random(1, 50, 9)
    whole = transition_stats(a, b, backend="reference")
    monkeypatch.setattr(import_module("vistok.ops.transition_stats"), "_CELLS", 30)
    assert all(map(torch.equal, whole, transition_stats(a, b, backend="reference")))


def test_float64_stays_float64() -> None:
    assert {value.dtype for value in transition_stats(A.double(), B)} == {torch.float64}


def test_vmap_maps_over_it() -> None:
    found = torch.func.vmap(lambda a, b: tuple(transition_stats(a, b)))(
        A[None].expand(2, -1, -1), B[None].expand(2, -1, -1)
    )
    assert all(torch.equal(x[1], y) for x, y in zip(found, transition_stats(A, B), strict=True))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"one shape .*got \[3, 2\] and \[2, 2\]"):
        transition_stats(A, B[:2])
    with pytest.raises(ValueError, match="floating-point a and b, got .*int64"):
        transition_stats(A, B.long())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    torch.library.opcheck(_op, (A.clone().requires_grad_(), B.clone().requires_grad_(), backend))
    torch.library.opcheck(_op, (A.bfloat16()[None, :2], B.bfloat16()[None, 1:], backend))
