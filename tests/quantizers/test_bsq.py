"""BSQ: codes on the sphere, bit orders, and its entropy loss against the table of all codes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.quantizers.bsq import BSQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("dim", range(1, 17))
def test_every_id_round_trips(dim: int, order: str) -> None:
    quantizer = BSQ(dim, bit_order=order).eval()
    ids = torch.arange(2**dim)
    codes = quantizer.lookup(ids)
    out = quantizer(codes * 7)
    assert torch.equal(out.indices, ids)
    assert torch.equal(out.embeds, codes)
    torch.testing.assert_close(codes.norm(dim=1), torch.ones(2**dim))


def test_codes_and_loss_by_hand() -> None:
    out = BSQ(4, commitment_weight=1.0).eval()(torch.tensor([[3.0, 0.0, -4.0, 0.0]]))
    assert out.embeds.tolist() == [[0.5, -0.5, -0.5, -0.5]]
    assert out.indices.tolist() == [8]
    assert float(out.loss) == pytest.approx((0.1**2 + 0.5**2 + 0.3**2 + 0.5**2) / 4)


def test_length_changes_nothing_and_the_zero_vector_is_fine() -> None:
    quantizer, z = BSQ(6).eval(), randn(50, 6)
    out = quantizer(z)
    for size in (1e-6, 1e6):
        other = quantizer(size * z)
        assert torch.equal(other.indices, out.indices)
        torch.testing.assert_close(other.loss, out.loss)
    assert quantizer(torch.zeros(1, 6)).indices.tolist() == [0]


def test_the_code_is_the_nearest_of_all() -> None:
    quantizer, z = BSQ(7).eval(), randn(200, 7)
    codes = quantizer.lookup(torch.arange(2**7))
    assert torch.equal(quantizer(z).indices, torch.cdist(z / z.norm(dim=1, keepdim=True), codes).argmin(1))


def test_the_gradient_passes_straight_to_the_unit_vector() -> None:
    z, g = randn(5, 4).requires_grad_(), randn(5, 4, seed=1)
    found = torch.autograd.grad(BSQ(4).train()(z).embeds, z, g)[0]
    expected = torch.autograd.grad(z / z.norm(dim=1, keepdim=True), z, g)[0]
    torch.testing.assert_close(found, expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.sampled_from([0.01, 0.3, 2.0]), st.integers(0, 2**31))
def test_the_loss_equals_the_softmax_over_all_codes(dim: int, rows: int, temperature: float, seed: int) -> None:
    quantizer = BSQ(dim, temperature=temperature).train()
    z = randn(rows, dim, seed=seed)
    out = quantizer(z)
    units = (z / z.norm(dim=1, keepdim=True)).double()
    codes = quantizer.lookup(torch.arange(2**dim)).double()
    p = torch.softmax(2 * units @ codes.T / temperature, dim=1)
    sample = -torch.xlogy(p, p).sum(1).mean().float()
    batch = -torch.xlogy(p.mean(0), p.mean(0)).sum().float()
    torch.testing.assert_close(out.stats["sample_entropy"], sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.stats["batch_entropy"], batch, rtol=1e-4, atol=1e-5)
    commitment = (units - out.embeds).square().mean().float()
    torch.testing.assert_close(out.loss, 0.25 * commitment + 0.1 * (sample - batch), rtol=1e-4, atol=1e-5)


def test_36_bits_train_without_a_table() -> None:
    quantizer = BSQ(36).train()
    out = quantizer(randn(64, 36))
    assert quantizer.codebook_sizes == (2**36,)
    assert bool(torch.isfinite(out.loss))
    assert math.isclose(float(out.stats["perplexity"]), 64, rel_tol=1e-5)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected 1..62"):
        BSQ(0)
    with pytest.raises(ValueError, match="bsq: expected temperature > 0"):
        BSQ(4, entropy_group=0)
