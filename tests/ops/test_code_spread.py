"""Diversity and orthogonality against their definitions on whole matrices."""

import math

import pytest
import torch
from torch import Tensor

from vistok.ops.code_spread import code_diversity, orthogonality
from vistok.ops.softmax_tiles import ROWS


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_by_hand() -> None:
    codes, x = torch.tensor([[0.0], [math.log(3.0)]]), torch.tensor([[0.0]])
    expected = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # exp(-0) : exp(-log 3)
    assert float(code_diversity(x, codes, 1.0)) == pytest.approx(expected)
    assert float(code_diversity(x, torch.tensor([[2.0], [-2.0]]), 5.0)) == pytest.approx(math.log(2))
    assert float(orthogonality(torch.eye(3) * 4)) == pytest.approx(0.0)
    assert float(orthogonality(torch.tensor([[1.0, 0.0], [2.0, 0.0]]))) == pytest.approx(0.5)  # 1 - 1/2


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize("count", [1, ROWS - 1, 2 * ROWS + 5])
def test_value_and_gradients_are_those_of_the_whole_matrix(count: int, cosine: bool) -> None:
    x, codes = randn(count, 3).double().requires_grad_(), randn(17, 3, seed=1).double().requires_grad_()
    scores = x @ codes.T if cosine else -(x[:, None] - codes).square().sum(-1).sqrt()
    mean = (4 * scores).softmax(1).mean(0)
    expected, found = -(mean * mean.log()).sum(), code_diversity(x, codes, 4.0, cosine=cosine)
    torch.testing.assert_close(found, expected)
    of_found, of_expected = (torch.autograd.grad(value, (x, codes)) for value in (found, expected))
    torch.testing.assert_close(of_found, of_expected, rtol=1e-5, atol=1e-9)


def test_orthogonality_is_the_mean_squared_cosine_of_different_codes() -> None:
    codes = randn(9, 4)
    cosines = torch.nn.functional.cosine_similarity(codes[:, None], codes, dim=-1)
    torch.testing.assert_close(orthogonality(codes), cosines.square().fill_diagonal_(0).sum() / 81)


def test_no_vectors_have_no_diversity_and_a_gradient_of_zero() -> None:
    codes = randn(5, 3).requires_grad_()
    found = code_diversity(torch.zeros(0, 3), codes, 1.0)
    assert float(found.detach()) == 0.0
    with pytest.raises(ValueError, match="code_diversity: expected x"):
        code_diversity(torch.zeros(2, 4), codes, 1.0)
