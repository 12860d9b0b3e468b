"""Measure a tokenizer on pictures, or a vision-language model on questions about them."""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from torch import Tensor

from vistok import tokenizer as make_tokenizer
from vistok.cli._eval_adaptive import adaptive
from vistok.cli._eval_codebook import codebook
from vistok.cli._eval_complexity import complexity
from vistok.cli._eval_depth import depth
from vistok.cli._eval_lvlm import lvlm
from vistok.cli._eval_perception import perception
from vistok.cli._eval_probe import probe
from vistok.cli._eval_prune import prune
from vistok.cli._eval_retrieval import retrieval
from vistok.cli._eval_vqt import vqt
from vistok.cli._eval_watermark import watermark
from vistok.data.images import list_images, open_image
from vistok.data.samples import sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.image_codecs import CodecResult
from vistok.metrics.patch_pca import PatchPca
from vistok.metrics.perceptual import st_lpips_network
from vistok.metrics.tokenizer import Evaluation, ImageScores, Judges, evaluate
from vistok.report.json_file import write_json

_SAMPLES = ("astronaut", "chelsea", "coffee", "rocket")
_ANSWER = {True: "same", False: "other", None: "-"}


def tokenizer(
    name: str,
    images: str | None = None,
    *,
    samples: bool = False,
    crop: int = 256,
    checkpoint: str | None = None,
    pca: str | None = None,
    json: str | None = None,
) -> None:
    """Encode and decode pictures; print PSNR, SSIM, perceptual distances, code use, and JPEG and WebP at equal bytes.

    Args:
        name: tokenizer, as `vistok list` shows them.
        images: folder of pictures, or one picture.
        samples: use four photographs of scikit-image (the default if no images are given).
        crop: side in pixels of the centre crop, 0 for whole pictures.
        checkpoint: weights other than the preset's own.
        pca: folder of training pictures; adds a 16-component PCA of 8x8 patches fitted on them.
        json: file to write all numbers to.
    """
    if samples and images is not None:
        raise ValueError("eval tokenizer: expected --samples or a folder of images, got both")
    model = make_tokenizer(name, pretrained=checkpoint is None, checkpoint=checkpoint)
    judges, notes = _judges(pca)
    result = evaluate(model, sample_crops(crop) if images is None else folder_crops(images, crop), judges)
    console = Console()
    console.print(scores_table(result))
    for line in [*summary_lines(result), *notes]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if json is not None:
        write_json(json, {"checkpoint": checkpoint, "crop": crop, **asdict(result)})


def sample_crops(crop: int) -> Iterator[tuple[str, Tensor]]:
    """Name and centre crop [3, crop, crop] of the four test photographs; crop 0 = whole."""
    return ((name, _centre(sample_path(name), crop)) for name in _SAMPLES)


def folder_crops(folder: str, crop: int) -> Iterator[tuple[str, Tensor]]:
    """Path below `folder` and centre crop of every picture. Raises: ValueError naming one that is too small."""
    root = Path(folder)
    paths = list_images(root)
    return ((path.name if path == root else str(path.relative_to(root)), _centre(path, crop)) for path in paths)


def scores_table(result: Evaluation) -> Table:
    """One row per image, then the means; a dash where nothing was measured."""
    means = result.means
    agreement = "-" if means.top1_agreement is None else f"{means.top1_agreement:.0%}"
    columns: list[tuple[str, Callable[[ImageScores], str], str]] = [
        ("PSNR", lambda row: _number(row.psnr, 2), _number(means.psnr, 2)),
        ("SSIM", lambda row: _number(row.ssim, 4), _number(means.ssim, 4)),
        ("ST-LPIPS", lambda row: _number(row.st_lpips, 4), _number(means.st_lpips, 4)),
        ("lite0", lambda row: _number(row.lite0_distance, 4), _number(means.lite0_distance, 4)),
        ("top-1", lambda row: _ANSWER[row.top1_agreement], agreement),
    ]
    if means.jpeg_psnr is not None:
        columns += [
            ("JPEG", lambda row: _codec(row.jpeg), _number(means.jpeg_psnr, 2)),
            ("WebP", lambda row: _codec(row.webp), _number(means.webp_psnr, 2)),
        ]
    if means.baseline_psnr is not None:
        columns += [("PCA", lambda row: _number(row.baseline_psnr, 2), _number(means.baseline_psnr, 2))]
    table = Table("image", title=escape(f"{result.tokenizer}: reconstructions (PSNR in dB)"))
    for heading, _, _ in columns:
        table.add_column(heading, justify="right")
    for row in result.images:
        table.add_row(escape(row.image), *(cell(row) for _, cell, _ in columns))
    table.add_section()
    table.add_row("mean", *(mean for _, _, mean in columns), style="bold")
    return table


def summary_lines(result: Evaluation) -> Iterator[str]:
    """What the table cannot say: bits, code use, what the codec columns mean, distances over all images."""
    first, means = result.images[0], result.means
    if means.bits_per_pixel is None:
        yield "JPEG and WebP left out: continuous tokens have no byte count of their own to compare at"
    else:
        yield f"{means.bits_per_pixel:.4f} bits per pixel (raw ids, not entropy-coded)"
        yield "JPEG and WebP: at most the tokens' bytes; JPEG counts from its SOS marker on, WebP the whole file"
    if any(codec is not None and not codec.fits for row in result.images for codec in (row.jpeg, row.webp)):
        yield "*: larger than the tokens even at its lowest quality"
    for number, book in enumerate(result.codebooks):
        of = f" {number}" if len(result.codebooks) > 1 else ""
        yield (
            f"codebook{of}: {book.used:,} of {book.size:,} codes used ({book.usage:.1%}) by {book.tokens:,} tokens, "
            f"perplexity {book.perplexity:,.1f} = {book.bits_per_token:.2f} bits a token"
        )
        course = ", ".join(f"{usage:.1%} by {tokens:,}" for tokens, usage in book.usage_by_tokens[-5:])
        yield f"codebook{of}: used as tokens went by: {course}; {book.dead_codes:,} codes never"
    if first.lite0_distance is not None:
        yield "lite0: cosine distance of EfficientNet-Lite0 features; top-1: whether its class stays the same"
    if result.frechet_lite0 is not None:
        yield (
            f"Frechet distance, lite0 features: {result.frechet_lite0:.3f} over {len(result.images)} images "
            "(compare only with runs on the same images)"
        )
    if means.baseline_psnr is not None:
        gain = means.psnr - means.baseline_psnr
        yield f"PCA: 16 components of 8x8 patches; {result.tokenizer} stands at {gain:+.2f} dB against it"


def _judges(pca: str | None) -> tuple[Judges, list[str]]:
    """The networks that are installed, and one line for each that is not."""
    notes: list[str] = []
    with Console(stderr=True).status("fitting the PCA") if pca is not None else nullcontext():
        baseline = None if pca is None else PatchPca.fit(pca)
    return Judges(_optional(st_lpips_network, notes), _optional(_lite0, notes), baseline=baseline), notes


def _lite0() -> Any:
    from vistok.metrics.lite0 import load_lite0  # timm takes seconds to import

    return load_lite0()


def _optional(load: Callable[[], Any], notes: list[str]) -> Any:
    try:
        return load()
    except ImportError as error:
        notes.append(f"-: not measured; {error}")
        return None


def _centre(path: Path, crop: int) -> Tensor:
    try:
        return Preprocess(crop=crop or None)(open_image(path))
    except ValueError as error:
        raise ValueError(f"{path}: {error}; choose a smaller --crop, or --crop 0 for whole pictures") from error


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _codec(result: CodecResult | None) -> str:
    return "-" if result is None else f"{result.psnr:.2f}{'' if result.fits else '*'}"


COMMAND = {
    "tokenizer": tokenizer,
    "adaptive": adaptive,
    "codebook": codebook,
    "complexity": complexity,
    "depth": depth,
    "lvlm": lvlm,
    "perception": perception,
    "probe": probe,
    "prune": prune,
    "retrieval": retrieval,
    "vqt": vqt,
    "watermark": watermark,
}
