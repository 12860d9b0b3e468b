"""Quantization by dimension: the published rule on numbers worked out by hand, and a bridge for trained latents."""

from statistics import NormalDist

import pytest
import torch

import vistok
from vistok.quantizers.dim import DimQuantizer


def test_codes_are_means_of_a_gaussian_in_bins_of_equal_probability() -> None:
    normal = NormalDist()
    edges = [-3.0, *(normal.inv_cdf(k / 8) for k in range(1, 8)), 3.0]
    pairs = list(zip(edges, edges[1:], strict=False))
    means = [(normal.pdf(a) - normal.pdf(b)) / (normal.cdf(b) - normal.cdf(a)) for a, b in pairs]
    codes = DimQuantizer(2, bits=3, reach=3.0).codes
    assert codes.tolist() == pytest.approx(means, abs=1e-6)
    assert DimQuantizer(2, bits=3).codes.tolist() == pytest.approx([mean * 5 / 3 for mean in means], abs=1e-6)


def test_every_number_gets_the_nearest_code(generator: torch.Generator) -> None:
    quantizer = DimQuantizer(4, bits=6)
    z = 3 * torch.randn(500, 4, generator=generator)
    out = quantizer(z)
    assert torch.equal(out.indices, (z[..., None] - quantizer.codes).abs().argmin(-1))
    assert torch.equal(out.embeds, quantizer.codes[out.indices])
    assert quantizer(torch.tensor([[-99.0, 99.0, -5.0, 5.0]])).indices.tolist() == [[0, 63, 0, 63]]


@pytest.mark.parametrize("bits", [1, 6, 10, 14])
def test_codes_rise_lie_in_reach_and_are_symmetric(bits: int) -> None:
    codes = DimQuantizer(1, bits=bits).codes
    assert len(codes) == 2**bits
    assert (codes.diff() >= 0).all() and codes.abs().max() <= 5
    torch.testing.assert_close(codes, -codes.flip(0), rtol=0, atol=1e-5)


def test_a_vector_of_one_dimension_has_one_id() -> None:
    quantizer = DimQuantizer(1, bits=2)
    out = quantizer(torch.tensor([[-9.0], [9.0]]))
    assert out.indices.tolist() == [0, 3] and torch.equal(quantizer.lookup(out.indices), out.embeds)


@torch.no_grad()
def test_trained_latents_survive_six_bits_a_dimension(photograph: torch.Tensor) -> None:
    model = vistok.tokenizer("kl_nano", pretrained=True)
    images = photograph[:, :, :128, :128]
    tokens = model.encode(images)
    assert tokens.embeds is not None

    def psnr(embeds: torch.Tensor) -> float:
        return float(-10 * (model.decode(tokens.replace(embeds=embeds)) - images).square().mean().log10())

    def bridged(bits: int) -> float:
        bridge = DimQuantizer(model.dim, bits=bits)
        return psnr(bridge.lookup(bridge(tokens.embeds).indices))

    two, six, ten, exact = bridged(2), bridged(6), bridged(10), psnr(tokens.embeds)
    assert two < six - 1 < ten and exact - 2.5 < six < exact


def test_sizes_that_there_are_not_are_refused() -> None:
    for dim, bits, reach in ((0, 6, 5.0), (4, 0, 5.0), (4, 17, 5.0), (4, 6, 0.0)):
        with pytest.raises(ValueError, match="bits in 1..16 and reach > 0"):
            DimQuantizer(dim, bits=bits, reach=reach)
    with pytest.raises(ValueError, match=r"expected ids \[..., 4\], got \[3\]"):
        DimQuantizer(4).lookup(torch.zeros(3, dtype=torch.int64))
