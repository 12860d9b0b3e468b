"""Entropies of sign codes against the table of all codes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import lfq_unpack
from vistok.ops.bits import binary_entropy, mean_code_entropy, sample_code_entropy


def code_distribution(logits: Tensor) -> Tensor:
    """Softmax over the scores of all sign codes [N, 2^D]: a bit of 1 adds half its logit, 0 takes it away."""
    dim = logits.shape[1]
    signs = lfq_unpack(torch.arange(2**dim), dim).to(logits)
    return torch.softmax(logits / 2 @ signs.T, dim=1)


def entropy(p: Tensor) -> Tensor:
    return -torch.xlogy(p, p).sum(-1)


def test_binary_entropy_by_hand_and_at_the_ends() -> None:
    found = binary_entropy(torch.tensor([0.0, math.log(3), 1e4, -1e4]))
    expected = math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)), 0.0, 0.0
    torch.testing.assert_close(found, torch.tensor(expected))


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 10), st.integers(1, 12), st.floats(0.01, 30), st.integers(0, 2**31))
def test_factorised_entropies_equal_the_table_and_so_do_their_gradients(
    dim: int, rows: int, scale: float, seed: int
) -> None:
    logits = scale * torch.randn(rows, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    logits.requires_grad_()
    table = code_distribution(logits)
    pairs = (
        (sample_code_entropy(logits), entropy(table).mean()),
        (mean_code_entropy(logits, group=10), entropy(table.mean(0))),
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected)
        gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("group", [1, 2, 3, 4])
def test_groups_of_bits_give_an_upper_bound(group: int) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(40, 1, generator=generator)
    logits = 6 * shared + torch.randn(40, 6, generator=generator)  # bits that depend on one another
    assert float(mean_code_entropy(logits, group)) > float(mean_code_entropy(logits, 6)) + 1e-3


def test_no_vectors_have_no_entropy() -> None:
    assert float(sample_code_entropy(torch.zeros(0, 5))) == 0.0
    assert float(mean_code_entropy(torch.zeros(0, 5), 3)) == 0.0
