import io

import pytest
import torch
from PIL import Image

from vistok.data.images import open_image
from vistok.data.samples import sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.image_codecs import jpeg_at, to_picture, webp_at
from vistok.metrics.reconstruction import psnr

LIMIT = 900


@pytest.fixture(scope="module")
def image():
    return Preprocess(resize=150, crop=128)(open_image(sample_path("astronaut")))


def encode_all(image, codec, qualities, **settings):
    """(bytes that count, PSNR) of every quality, the scan found by searching the marker from behind."""
    found = []
    for quality in qualities:
        file = io.BytesIO()
        to_picture(image).save(file, codec, quality=quality, **settings)
        data = file.getvalue()
        pixels = Preprocess()(Image.open(io.BytesIO(data)))
        size = len(data) - data.rindex(b"\xff\xda") if codec == "JPEG" else len(data)
        found.append((size, float(psnr(pixels[None], image[None]))))
    return found


def test_jpeg_is_the_best_of_all_qualities_and_samplings_that_fit(image):
    every = [pair for s in (0, 2) for pair in encode_all(image, "JPEG", range(1, 81), subsampling=s, optimize=True)]
    result = jpeg_at(image, LIMIT)
    assert result.fits and result.bytes <= LIMIT
    assert result.psnr == pytest.approx(max(quality for size, quality in every if size <= LIMIT))


def test_webp_is_the_best_of_all_qualities_that_fit(image):
    every = encode_all(image, "WEBP", range(0, 81), method=6)
    result = webp_at(image, LIMIT)
    assert result.fits and result.bytes <= LIMIT
    assert result.psnr == pytest.approx(max(quality for size, quality in every if size <= LIMIT), abs=0.05)


def test_tables_before_the_scan_do_not_count_even_if_they_hold_the_marker(image):
    result = jpeg_at(image, LIMIT)
    whole = [len(_jpeg(image, result.quality, s)) for s in (0, 2)]
    assert result.bytes < min(whole) - 150  # two quantization tables and two pairs of Huffman tables


@pytest.mark.parametrize("codec", [jpeg_at, webp_at])
def test_more_bytes_never_make_it_worse(image, codec):
    qualities = [codec(image, limit).psnr for limit in (700, 1000, 1600, 100_000)]
    assert qualities == sorted(qualities) and qualities[-1] > qualities[0] + 5


@pytest.mark.parametrize(("codec", "lowest"), [(jpeg_at, 1), (webp_at, 0)])
def test_a_limit_nothing_meets_gives_the_lowest_quality_and_says_so(image, codec, lowest):
    result = codec(image, 10)
    assert not result.fits and result.bytes > 10 and result.quality == lowest


def test_pixels_outside_the_range_are_clamped_not_wrapped():
    picture = to_picture(torch.tensor([-0.2, 0.5, 1.2]).reshape(3, 1, 1))
    assert picture.getpixel((0, 0)) == (0, 128, 255)


def _jpeg(image, quality, subsampling):
    file = io.BytesIO()
    to_picture(image).save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return file.getvalue()
