"""Evaluate a tokenizer on images: reconstruction, perception, code use, and image codecs at the same byte count."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.metrics.codebook_health import CodebookHealth
from vistok.metrics.frechet import frechet_distance
from vistok.metrics.image_codecs import CodecResult, jpeg_at, webp_at
from vistok.metrics.reconstruction import psnr, ssim
from vistok.metrics.round_trip import RoundTrip, evaluating, round_trip
from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor

if TYPE_CHECKING:  # its import costs seconds (timm), and it is an extra
    from vistok.metrics.lite0 import Lite0, Lite0Output


@dataclass(frozen=True)
class Judges:
    """What to score with, beside PSNR and SSIM; each may be left out.

    st_lpips: distance of images in [-1, 1]; lite0: classifier; codecs: JPEG and WebP at equal bytes (discrete tokens
    only); baseline: another reconstruction, [B, 3, H, W] in [0, 1] to the same.
    """

    st_lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    lite0: "Lite0 | None" = None
    codecs: bool = True
    baseline: Callable[[Tensor], Tensor] | None = None


@dataclass(frozen=True)
class ImageScores:
    """One image; None = not measured. bits: raw ids, ids * log2(codebook), None for continuous tokens.

    lite0_distance: cosine distance of EfficientNet-Lite0 features. seconds: encode + decode.
    """

    image: str
    height: int
    width: int
    tokens: int
    bits: float | None
    seconds: float
    psnr: float
    ssim: float
    st_lpips: float | None
    lite0_distance: float | None
    top1_agreement: bool | None
    jpeg: CodecResult | None
    webp: CodecResult | None
    baseline_psnr: float | None


@dataclass(frozen=True)
class Means:
    """Means over images; bits_per_pixel: all bits over all pixels (raw ids, not entropy-coded)."""

    psnr: float
    ssim: float
    st_lpips: float | None
    lite0_distance: float | None
    top1_agreement: float | None
    jpeg_psnr: float | None
    webp_psnr: float | None
    baseline_psnr: float | None
    bits_per_pixel: float | None


@dataclass(frozen=True)
class CodebookUse:
    """How much of one codebook `tokens` ids used. bits_per_token: log2(perplexity), the entropy of single ids.

    usage_by_tokens: [tokens, usage] as they went by, each count twice the one before; dead_codes: never used.
    """

    size: int
    tokens: int
    used: int
    usage: float
    perplexity: float
    bits_per_token: float
    dead_codes: int
    usage_by_tokens: list[list[float]]


@dataclass(frozen=True)
class Evaluation:
    """All that `evaluate` found; `dataclasses.asdict` of it is JSON-able. frechet_lite0: None under two images."""

    tokenizer: str
    images: list[ImageScores]
    means: Means
    codebooks: list[CodebookUse]
    frechet_lite0: float | None


_ONLY_CODECS = Judges()


def evaluate(tokenizer: Tokenizer, images: Iterable[tuple[str, Tensor]], judges: Judges = _ONLY_CODECS) -> Evaluation:
    """Encode and decode every (name, image [3, H, W] in [0, 1]), one at a time, and score the result.

    Raises: ValueError if there are no images.
    """
    scores: list[ImageScores] = []
    books = [CodebookHealth.empty(size) for size in tokenizer.spec.codebook_sizes]
    seen: list[tuple[Lite0Output, Lite0Output]] = []
    with evaluating(tokenizer):
        for name, image in images:
            trip = round_trip(tokenizer, image)
            pair = None if judges.lite0 is None else (judges.lite0(trip.image[None]), judges.lite0(image[None]))
            if pair is not None:
                seen.append(pair)
            scores.append(_score(name, image, trip, judges, pair))
            for book, ids in zip(books, _ids(trip.tokens), strict=True):
                book.add(ids)
    if not scores:
        raise ValueError("evaluate: expected at least one image, got none")
    return Evaluation(tokenizer.spec.name, scores, _means(scores), [_use(book) for book in books], _frechet(seen))


def _score(
    name: str, image: Tensor, trip: RoundTrip, judges: Judges, seen: "tuple[Lite0Output, Lite0Output] | None"
) -> ImageScores:
    pred, target = trip.image[None], image[None]
    limit = None if trip.bits is None or not judges.codecs else math.ceil(trip.bits / 8)
    return ImageScores(
        image=name,
        height=image.shape[1],
        width=image.shape[2],
        tokens=trip.length,
        bits=trip.bits,
        seconds=trip.seconds,
        psnr=float(psnr(pred, target)),
        ssim=float(ssim(pred, target)),
        st_lpips=None if judges.st_lpips is None else float(judges.st_lpips(pred * 2 - 1, target * 2 - 1)),
        lite0_distance=None if seen is None else float(seen[0].distance(seen[1])),
        top1_agreement=None if seen is None else bool(seen[0].same_class(seen[1])),
        jpeg=None if limit is None else jpeg_at(image, limit),
        webp=None if limit is None else webp_at(image, limit),
        baseline_psnr=None if judges.baseline is None else float(psnr(judges.baseline(target), target)),
    )


def _ids(tokens: TokenTensor) -> list[Tensor]:
    """Ids [B, N] of every codebook, -1 for padding."""
    sizes = tokens.spec.codebook_sizes
    if not sizes or tokens.indices is None:
        return []
    ids = tokens.indices.reshape(*tokens.indices.shape[:2], len(sizes))
    return [column.where(tokens.mask, -1) for column in ids.unbind(-1)]


def _use(book: CodebookHealth) -> CodebookUse:
    report = book.report()
    return CodebookUse(
        size=report["codes"],
        tokens=report["tokens"],
        used=report["codes"] - report["dead_codes"],
        usage=report["usage"],
        perplexity=report["perplexity"],
        bits_per_token=report["bits_per_token"],
        dead_codes=report["dead_codes"],
        usage_by_tokens=report["usage_by_tokens"],
    )


def _frechet(seen: "Sequence[tuple[Lite0Output, Lite0Output]]") -> float | None:
    if len(seen) < 2:
        return None
    pred, target = (torch.cat([output.features for output in side]) for side in zip(*seen, strict=True))
    return float(frechet_distance(pred, target))


def _means(scores: Sequence[ImageScores]) -> Means:
    bits, pixels = [score.bits for score in scores], sum(score.height * score.width for score in scores)
    return Means(
        psnr=fmean(score.psnr for score in scores),
        ssim=fmean(score.ssim for score in scores),
        st_lpips=_mean([score.st_lpips for score in scores]),
        lite0_distance=_mean([score.lite0_distance for score in scores]),
        top1_agreement=_mean([score.top1_agreement for score in scores]),
        jpeg_psnr=_mean([None if score.jpeg is None else score.jpeg.psnr for score in scores]),
        webp_psnr=_mean([None if score.webp is None else score.webp.psnr for score in scores]),
        baseline_psnr=_mean([score.baseline_psnr for score in scores]),
        bits_per_pixel=None if None in bits else sum(bit or 0.0 for bit in bits) / pixels,
    )


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return fmean(present) if len(present) == len(values) else None
