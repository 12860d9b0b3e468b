"""The entropies of codes against the dense softmax under autograd, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vistok.ops import code_entropy
from vistok.ops.code_entropy import _backward_body, _body
from vistok.ops.softmax_tiles import CODES, ROWS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(x: Tensor, codebook: Tensor, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    log_p = (x @ codebook.T / temperature).log_softmax(1)
    mean = log_p.exp().mean(0)
    return -(log_p.exp() * log_p).sum(1).mean(), -(mean * (mean + eps).clamp(min=1e-30).log()).sum()


def loss(entropies: tuple[Tensor, Tensor]) -> Tensor:
    return 0.7 * entropies[0] - 1.4 * entropies[1]


def test_by_hand() -> None:
    codebook = torch.tensor([[math.log(3.0)], [0.0]])
    sample, batch = code_entropy(torch.tensor([[1.0], [-1.0]]), codebook)  # P = (3/4, 1/4) and (1/4, 3/4)
    assert float(sample) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert float(batch) == pytest.approx(math.log(2))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 30),
    st.integers(1, 6),
    st.sampled_from([0.01, 0.3, 2.0]),
    st.sampled_from([0.0, 1e-5]),
    st.integers(0, 99),
)
def test_entropies_and_gradients_are_those_of_the_dense_softmax(
    n: int, k: int, d: int, temperature: float, eps: float, seed: int
) -> None:
    x = randn(n, d, seed=seed).double().requires_grad_()
    codebook = randn(k, d, seed=seed + 1).double().requires_grad_()
    found, expected = code_entropy(x, codebook, temperature, eps=eps), dense(x, codebook, temperature, eps)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(loss(pair), (x, codebook)) for pair in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("extra", [-1, 0, 1, 300])
def test_tiles_of_any_remainder_give_the_dense_entropies(extra: int) -> None:
    x, codebook = randn(ROWS + extra, 3).requires_grad_(), randn(CODES + extra, 3, seed=1).requires_grad_()
    found = code_entropy(x, codebook, 0.1)
    expected = dense(x.double(), codebook.double(), 0.1, 0.0)
    torch.testing.assert_close(found, tuple(value.float() for value in expected), rtol=1e-5, atol=1e-5)
    of_found, of_expected = (torch.autograd.grad(loss(pair), (x, codebook)) for pair in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-5, atol=1e-5)


def test_large_logits_leave_a_small_entropy_exact() -> None:
    x, codebook = torch.tensor([[1000.0]]), torch.tensor([[10.0], [10.001], [-10.0]])
    sample, _ = code_entropy(x, codebook)
    p = torch.tensor([0.0, 1.0]).double().softmax(0)
    assert float(sample) == pytest.approx(float(-(p * p.log()).sum()), abs=2e-3)  # logits 10000 and 10001


def test_one_sided_gradients_reach_where_they_should() -> None:
    x, codebook = randn(20, 3).requires_grad_(), randn(7, 3, seed=1)
    sample, batch = code_entropy(x, codebook)
    for entropy, expected in zip((sample, batch), dense(x, codebook, 1.0, 0.0), strict=True):
        found, wanted = (torch.autograd.grad(value, x, retain_graph=True)[0] for value in (entropy, expected))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_no_vectors_have_no_entropy_and_a_gradient_of_zero() -> None:
    x, codebook = torch.zeros(0, 3, requires_grad=True), randn(5, 3).requires_grad_()
    sample, batch = code_entropy(x, codebook)
    assert sample.item() == batch.item() == 0.0
    assert bool((torch.autograd.grad(sample - batch, codebook)[0] == 0).all())


class LargestTensor(TorchDispatchMode):
    """Records the most elements that any tensor made inside had."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.numel = max(self.numel, tensor.numel())
        return out


def test_no_tensor_of_vectors_times_codes_is_made_forward_or_backward() -> None:
    x, codebook = randn(3 * ROWS, 2), randn(6 * CODES, 2, seed=1)
    with LargestTensor() as forward:
        _, mean, *saved = _body(x, codebook, 0.1)
    one = torch.ones(())
    with LargestTensor() as backward:
        _backward_body(one, mean, x, codebook, *saved, 0.1)
    assert forward.numel == backward.numel == ROWS * CODES


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"expected x \[N, D\] and codebook \[K, D\], K > 0, got \[3, 2\] and \[0, 2\]"
    ):
        code_entropy(randn(3, 2), randn(0, 2))
    with pytest.raises(ValueError, match="both float32 or both float64"):
        code_entropy(randn(3, 2), randn(4, 2).double())
    with pytest.raises(ValueError, match="temperature > 0 and eps >= 0, got 0.0 and 0.0"):
        code_entropy(randn(3, 2), randn(4, 2), 0.0)
