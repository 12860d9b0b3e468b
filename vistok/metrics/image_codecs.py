"""JPEG and WebP at a given byte count: what a picture costs without a learned tokenizer."""

import io
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from vistok.layers.preprocess import Preprocess
from vistok.metrics.reconstruction import psnr

_SOS = 0xDA
_LOOK_AHEAD = 3
_SUBSAMPLINGS = {"4:4:4": 0, "4:2:0": 2}


@dataclass(frozen=True)
class CodecResult:
    """psnr in dB, bytes that count, quality setting; fits = False if even the lowest quality exceeds the limit."""

    psnr: float
    bytes: int
    quality: int
    fits: bool


def jpeg_at(image: Tensor, limit: int) -> CodecResult:
    """The best JPEG of at most `limit` bytes: image [3, H, W] in [0, 1], 8 bits a channel.

    Optimized Huffman tables, the better of 4:4:4 and 4:2:0. Only the bytes from the SOS marker on count: quantization
    and Huffman tables are to a JPEG what the codebook is to a token file.
    """
    found = [_best(image, limit, "JPEG", _scan_bytes, 1, subsampling=s, optimize=True) for s in _SUBSAMPLINGS.values()]
    return max(found, key=lambda result: (result.fits, result.psnr if result.fits else -result.bytes))


def webp_at(image: Tensor, limit: int) -> CodecResult:
    """The best lossy WebP (method 6) of at most `limit` bytes, the whole file counted; arguments as `jpeg_at`."""
    return _best(image, limit, "WEBP", len, 0, method=6)


def _best(
    image: Tensor, limit: int, codec: str, cost: Callable[[bytes], int], lowest: int, **settings: int
) -> CodecResult:
    picture = to_picture(image)

    def encoded(quality: int) -> bytes:
        file = io.BytesIO()
        picture.save(file, codec, quality=quality, **settings)
        return file.getvalue()

    quality = _highest_that_fits(lambda q: cost(encoded(q)) <= limit, lowest, 100)
    file = encoded(quality)
    with Image.open(io.BytesIO(file)) as decoded:
        pixels = Preprocess()(decoded)
    return CodecResult(float(psnr(pixels[None], image[None])), cost(file), quality, cost(file) <= limit)


def _highest_that_fits(fits: Callable[[int], bool], lowest: int, highest: int) -> int:
    """The highest quality that fits, by bisection; `lowest` if none does."""
    low, high = lowest, highest
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    # A step in quality now and then makes a file smaller, which bisection cannot see.
    ahead = range(low + 1, min(low + _LOOK_AHEAD, highest) + 1)
    return max((quality for quality in ahead if fits(quality)), default=low)


def to_picture(image: Tensor) -> Image.Image:
    """[3, H, W] in [0, 1], clamped and rounded to 8 bits -> RGB picture."""
    levels = image.detach().clamp(0, 1).mul(255).round().to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _scan_bytes(file: bytes) -> int:
    """Bytes from the start-of-scan marker to the end; segments are walked, as a table may hold the marker's bytes."""
    at = 2
    while file[at + 1] != _SOS:
        at += 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return len(file) - at
