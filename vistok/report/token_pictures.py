"""A picture, its tokens as colours and its reconstruction, put together for a gallery."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr, ssim
from vistok.protocols import Tokenizer
from vistok.report.gallery import Picture
from vistok.report.inline_picture import inline_picture
from vistok.report.token_map import Rgb, TokenMap, TokenStrip, id_colors, token_map, token_strip, vector_colors
from vistok.tokens import TokenTensor

_LONGEST = 2000  # characters of a caption
_MOST_SLOTS = 1 << 16  # of a strip: one file may say that a token sits in slot 2,000,000,000


def token_picture(
    name: str,
    size: tuple[int, int] | None,
    tokens: TokenTensor,
    colors: Rgb,
    slots: int,
    *,
    original: Tensor | None = None,
    decoded: Tensor | None = None,
    caption: str = "",
) -> Picture:
    """One picture of width and height `size` (None: not known) and its tokens, as a gallery shows it.

    original, decoded: [3, H, W] in [0, 1]. colors: of the tokens, see `token_colors`; slots: how many there are to sit
    in, see `slot_count`.
    """
    count = int(tokens.valid_lengths[0])
    numbers = [*([f"{size[0]} × {size[1]} px"] if size else []), f"{count:,} tokens"]
    if original is not None and decoded is not None and original.shape == decoded.shape:
        pair = decoded[None], original[None]
        numbers.append(f"PSNR {float(psnr(*pair)):.2f} dB")
        if min(original.shape[1:]) >= 11:
            numbers.append(f"SSIM {float(ssim(*pair)):.3f}")
    return Picture(
        name,
        ", ".join(numbers),
        caption if len(caption) <= _LONGEST else caption[:_LONGEST] + " ...",
        None if original is None else inline_picture(to_picture(original)),
        None if decoded is None else inline_picture(to_picture(decoded)),
        _map(size, tokens, colors),
        _strip(tokens, colors, slots),
    )


def _map(size: tuple[int, int] | None, tokens: TokenTensor, color: Rgb) -> TokenMap | None:
    """Cells over the picture, of tokens that are cells of it."""
    spec = tokens.spec
    if len(spec.grid) != 2 or spec.order != "raster" or len(color) - spec.prefix != spec.grid[0] * spec.grid[1]:
        return None
    rows, cols = spec.grid
    whole = (rows * spec.patch, cols * spec.patch) if size is None else (size[1], size[0])
    shown = (spec.image_size[0], spec.image_size[1]) if len(spec.image_size) == 2 else whole
    used = "" if tokens.indices is None else f", {len(tokens.indices[0].unique(dim=0)):,} different ids"
    text = f"{rows} rows by {cols} columns{used}"
    return token_map(color[spec.prefix :], (rows, cols), spec.patch, shown, text)


def _strip(tokens: TokenTensor, color: Rgb, total: int) -> TokenStrip | None:
    """Slots of tokens that are no cells of the picture."""
    if tokens.spec.order == "raster" or not 0 < total <= _MOST_SLOTS:
        return None
    slots = _source(tokens)
    return token_strip(color, slots, total, f"{len(slots)} of {total} slots hold a token.")


def _source(tokens: TokenTensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    count = int(tokens.valid_lengths[0])
    source = torch.arange(count) if tokens.source is None else tokens.source[0, :count]
    return source.numpy().astype(np.int64)


def slot_count(tokens: TokenTensor, tokenizer: Tokenizer | None) -> int:
    """How many slots there are to sit in: what the tokenizer says, at least those that are taken."""
    source = _source(tokens)
    said = getattr(tokenizer, "budget", 0)
    return max(said if isinstance(said, int) else 0, int(source.max()) + 1 if len(source) else 0)


def token_colors(tokens: Sequence[TokenTensor]) -> list[Rgb]:
    """Colours of the valid tokens of each sample; ids of the first of several codebooks."""
    counts = [int(each.valid_lengths[0]) for each in tokens]
    if tokens and tokens[0].indices is not None:
        found = []
        for each, count in zip(tokens, counts, strict=True):
            assert each.indices is not None
            ids = each.indices[0, :count].reshape(count, -1)[:, 0]
            found.append(id_colors(ids.numpy().astype(np.int64), each.spec.codebook_sizes[0]))
        return found
    if not sum(counts):
        return [np.zeros((0, 3), np.uint8) for _ in tokens]
    vectors = [each.anchor[0, :count].float().numpy() for each, count in zip(tokens, counts, strict=True)]
    return vector_colors(vectors)
