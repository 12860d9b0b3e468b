"""Index propagation against its dense formula under autograd, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from vistok.ops import index_propagation
from vistok.ops.index_propagation import _backward_body, _body
from vistok.ops.softmax_tiles import CODES, ROWS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(z: Tensor, codebook: Tensor) -> Tensor:
    """The authors' form: one-hot rows whose gradient is that of the softmax."""
    logits = z @ codebook.T
    p = logits.softmax(1)
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), len(codebook)).to(p)
    return (one_hot - p.detach() + p) @ codebook


def gradients(embeds: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    upstream = torch.randn(embeds.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return torch.autograd.grad(embeds, inputs, upstream.to(embeds.dtype))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 9), st.sampled_from([0.1, 1.0, 10.0]), st.integers(0, 99))
def test_codes_and_gradients_are_those_of_the_dense_softmax(n: int, k: int, d: int, scale: float, seed: int) -> None:
    z = (scale * randn(n, d, seed=seed)).double().requires_grad_()
    codebook = randn(k, d, seed=seed + 1).double().requires_grad_()
    embeds, ids = index_propagation(z, codebook)
    expected = dense(z, codebook)
    assert torch.equal(ids, (z @ codebook.T).argmax(1))
    assert torch.equal(embeds, codebook[ids])
    torch.testing.assert_close(gradients(embeds, z, codebook), gradients(expected, z, codebook))


@pytest.mark.parametrize("extra", [-1, 0, 1, 300])
def test_tiles_of_any_remainder_give_the_dense_gradients(extra: int) -> None:
    z, codebook = randn(ROWS + extra, 3).requires_grad_(), randn(CODES + extra, 3, seed=1).requires_grad_()
    expected = gradients(dense(z.double(), codebook.double()), z, codebook)
    found = gradients(index_propagation(z, codebook)[0], z, codebook)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_every_code_gets_a_gradient_and_nothing_passes_straight_through() -> None:
    z, codebook = randn(64, 4).requires_grad_(), randn(512, 4, seed=1).requires_grad_()
    of_z, of_codes = gradients(index_propagation(z, codebook)[0], z, codebook)
    assert bool((of_codes != 0).any(1).all())
    alone = index_propagation(z, codebook[:1])[0]  # one code: the softmax is constant, and so is the result
    assert bool((gradients(alone, z)[0].abs() < 1e-6).all())
    assert bool((of_z != 0).any())


def test_huge_logits_neither_overflow_nor_underflow() -> None:
    z, codebook = (1e6 * randn(20, 4)).requires_grad_(), randn(30, 4, seed=1).requires_grad_()
    found = gradients(index_propagation(z, codebook)[0], z, codebook)
    assert all(bool(torch.isfinite(gradient).all()) for gradient in found)


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
    z, codebook = randn(3 * ROWS, 2), randn(6 * CODES, 2, seed=1)
    with LargestTensor() as forward:
        _, ids = _body(z, codebook)
    with LargestTensor() as backward:
        _backward_body(z, z, codebook, ids)
    with LargestTensor() as theirs:
        dense(z, codebook)
    assert backward.numel == ROWS * CODES > forward.numel
    assert theirs.numel == len(z) * len(codebook)


def test_a_gradient_of_a_gradient_is_refused() -> None:
    z, codebook = randn(3, 2).requires_grad_(), randn(4, 2, seed=1).requires_grad_()
    embeds = index_propagation(z, codebook)[0]
    with pytest.raises(RuntimeError):
        (first,) = torch.autograd.grad(embeds.sum(), z, create_graph=True)
        first.sum().backward()


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"expected z \[N, D\] and codebook \[K, D\], K > 0, got \[3, 2\] and \[4, 3\]"
    ):
        index_propagation(randn(3, 2), randn(4, 3))
    with pytest.raises(ValueError, match="both float32 or both float64"):
        index_propagation(randn(3, 2).bfloat16(), randn(4, 2))
