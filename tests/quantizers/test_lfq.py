"""LFQ: signs, bit orders, and its entropy loss against the table of all codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.quantizers.lfq import LFQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("order", ["msb", "lsb"])
@pytest.mark.parametrize("dim", range(1, 17))
def test_every_id_round_trips(dim: int, order: str) -> None:
    quantizer = LFQ(dim, bit_order=order).eval()
    ids = torch.arange(2**dim)
    codes = quantizer.lookup(ids)
    out = quantizer(codes * 0.3)
    assert torch.equal(out.indices, ids)
    assert torch.equal(out.embeds, codes)


def test_signs_and_bit_orders_by_hand() -> None:
    z = torch.tensor([[0.2, -3.0, -0.1, -1.0], [0.0, -0.0, 1e-30, 5.0]])
    msb, lsb = LFQ(4, bit_order="msb").eval()(z), LFQ(4, bit_order="lsb").eval()(z)
    assert msb.indices.tolist() == [8, 3] and lsb.indices.tolist() == [1, 12]
    assert msb.embeds.tolist() == lsb.embeds.tolist() == [[1, -1, -1, -1], [-1, -1, 1, 1]]


def test_commitment_by_hand() -> None:
    out = LFQ(2, commitment_weight=0.5).eval()(torch.tensor([[0.5, -3.0]]))
    assert float(out.stats["commitment_loss"]) == pytest.approx((0.25 + 4.0) / 2)
    assert float(out.loss) == pytest.approx(0.5 * (0.25 + 4.0) / 2)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 20), st.sampled_from([0.01, 0.3, 2.0]), st.integers(0, 2**31))
def test_the_loss_equals_the_softmax_over_all_codes(dim: int, rows: int, temperature: float, seed: int) -> None:
    quantizer = LFQ(dim, temperature=temperature, sample_entropy_weight=0.7, batch_entropy_weight=1.3).train()
    z = randn(rows, dim, seed=seed)
    out = quantizer(z)
    codes = quantizer.lookup(torch.arange(2**dim)).double()
    p = torch.softmax(2 * z.double() @ codes.T / temperature, dim=1)
    sample = -torch.xlogy(p, p).sum(1).mean().float()
    batch = -torch.xlogy(p.mean(0), p.mean(0)).sum().float()
    commitment = (z - out.embeds).square().mean()
    torch.testing.assert_close(out.stats["sample_entropy"], sample, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(out.stats["batch_entropy"], batch, rtol=1e-4, atol=1e-5)
    expected = 0.25 * commitment + 0.1 * (0.7 * sample - 1.3 * batch)
    torch.testing.assert_close(out.loss, expected, rtol=1e-4, atol=1e-5)


def test_training_on_the_loss_spreads_the_codes() -> None:
    z = (0.05 * randn(256, 4) + 0.3).requires_grad_()
    quantizer = LFQ(4, temperature=1.0, entropy_weight=1.0).train()
    optimizer = torch.optim.Adam([z], lr=0.05)
    before = float(quantizer(z).stats["perplexity"])
    for _ in range(50):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    assert before < 2 and float(quantizer(z).stats["perplexity"]) > 2 * before


@pytest.mark.parametrize("dim", [18, 36, 62])
def test_wide_codes_train_without_a_table(dim: int) -> None:
    quantizer = LFQ(dim).train()
    out = quantizer(randn(64, dim))
    assert quantizer.codebook_sizes == (2**dim,)
    assert bool(torch.isfinite(out.loss))
    assert torch.equal(quantizer.lookup(out.indices), out.embeds)


def test_the_straight_through_gradient_is_the_identity() -> None:
    z, g = randn(5, 4).requires_grad_(), randn(5, 4, seed=1)
    assert torch.equal(torch.autograd.grad(LFQ(4).train()(z).embeds, z, g)[0], g)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected 1..62"):
        LFQ(63)
    with pytest.raises(ValueError, match="bit order"):
        LFQ(4, bit_order="little")
    with pytest.raises(ValueError, match="lfq: expected temperature > 0"):
        LFQ(4, temperature=0.0)
