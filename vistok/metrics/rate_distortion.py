"""What a tokenizer's bits buy: rate and distortion on squares of pictures, beside JPEG and WebP of the same bytes.

B images, N tokens, T slots.
"""

import inspect
import math
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from vistok.metrics.image_codecs import CodecResult, jpeg_at, webp_at
from vistok.metrics.reconstruction import psnr, ssim
from vistok.metrics.round_trip import evaluating
from vistok.metrics.token_bits import token_bits, value_bits_of
from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor


@dataclass(frozen=True)
class RatePoint:
    """A tokenizer at one budget (None: it has one length). Means over images; rates of raw ids, not entropy-coded.

    bits_per_pixel: log2(codebook) per id, 16 bits per number of continuous tokens, and the mask of slots where the
    number of tokens varies. jpeg_psnr, webp_psnr: at the bytes of each image's tokens, None if one does not fit.
    refused: why there is nothing else.
    """

    tokenizer: str
    budget: int | None = None
    tokens: float | None = None
    bits_per_pixel: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    jpeg_psnr: float | None = None
    webp_psnr: float | None = None
    refused: str | None = None


def slots_to_choose(tokenizer: Tokenizer) -> int | None:
    """T of a tokenizer that takes a budget of tokens, None of one that has one length for all pictures of a size."""
    slots = getattr(tokenizer, "budget", None)
    return slots if isinstance(slots, int) and "budget" not in getattr(tokenizer, "cannot", ()) else None


def rate_point(
    name: str, tokenizer: Tokenizer, images: Tensor, budget: int | None = None, *, batch: int = 8
) -> RatePoint:
    """Encode and decode images [B, 3, H, W] in [0, 1]; with a budget, each image gets exactly so many tokens.

    Raises: ValueError if there is no image, or the tokenizer cannot take them; NotImplementedError without a decoder.
    """
    if not len(images):
        raise ValueError("rate_point: expected at least one image, got none")
    options: dict[str, Any] = {} if budget is None else {"budget": budget}
    if budget is not None and "halting" in inspect.signature(tokenizer.encode).parameters:
        options["halting"] = False
    lengths: list[float] = []
    bits: list[float] = []
    decoded: list[Tensor] = []
    with evaluating(tokenizer):
        for part in images.split(batch):
            tokens = tokenizer.encode(part, **options)
            lengths += tokens.valid_lengths.double().tolist()
            bits += _bits(tokenizer, tokens).tolist()
            decoded.append(tokenizer.decode(tokens).clamp(0, 1))
    pixels = images.shape[2] * images.shape[3]
    pairs = list(zip(torch.cat(decoded)[:, None], images[:, None], strict=True))
    limits = [math.ceil(each / 8) for each in bits]
    return RatePoint(
        name,
        budget,
        fmean(lengths),
        fmean(bits) / pixels,
        fmean(float(psnr(*pair)) for pair in pairs),
        fmean(float(ssim(*pair)) for pair in pairs),
        _mean([jpeg_at(image, limit) for image, limit in zip(images, limits, strict=True)]),
        _mean([webp_at(image, limit) for image, limit in zip(images, limits, strict=True)]),
    )


def _bits(tokenizer: Tokenizer, tokens: TokenTensor) -> Tensor:
    """Bits of each item [B] float64; a grid is known from the picture's size and needs no mask."""
    slots = slots_to_choose(tokenizer)
    return value_bits_of(tokens) if slots is None else token_bits(tokens, slots)


def _mean(found: list[CodecResult]) -> float | None:
    return fmean(each.psnr for each in found) if all(each.fits for each in found) else None
