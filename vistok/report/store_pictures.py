"""Samples of a store as pictures: originals where they can be found, reconstructions where they can be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vistok.data.store import TokenStore
from vistok.layers.preprocess import Preprocess
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr, ssim
from vistok.metrics.round_trip import evaluating
from vistok.protocols import Tokenizer
from vistok.report.gallery import Gallery, Picture
from vistok.report.inline_picture import inline_picture
from vistok.report.originals import Originals, not_found
from vistok.report.page import Part
from vistok.report.parts import Remarks
from vistok.report.token_map import Rgb, TokenMap, TokenStrip, id_colors, token_map, token_strip, vector_colors
from vistok.tokens import TokenTensor

_LONGEST = 2000  # characters of a caption


@dataclass(frozen=True)
class Decoder:
    """The tokenizer that made a store, or None and why there is none."""

    tokenizer: Tokenizer | None
    why_not: str = ""


def store_pictures(
    store: TokenStore, decoder: Decoder, originals: Originals | None, samples: int, room: int
) -> list[Part]:
    """A gallery of `samples` samples, evenly spread over the store, as far as `room` bytes go; and what is missing."""
    count = min(samples, len(store))
    chosen = [round(number) for number in np.linspace(0, len(store) - 1, count).tolist()] if count else []
    tokens = [store[index] for index in chosen]
    colors = _colors(tokens)
    total = max((_slots(each, decoder.tokenizer) for each in tokens), default=0)
    items: list[Picture] = []
    missing: list[str] = []
    said: list[str] = [] if decoder.tokenizer is not None else [f"Reconstructions are not shown: {decoder.why_not}"]
    if originals is None:
        said.append("Originals are not shown: a store does not hold them; say where they are with --images.")
    for index, own, color in zip(chosen, tokens, colors, strict=True):
        row = store.rows[index]
        decoded = _decoded(decoder.tokenizer, own, said)
        original = _original(originals, row, decoder.tokenizer, missing, said)
        shown = _picture(row, own, color, original, decoded, total)
        if sum(item.bytes for item in items) + shown.bytes > room:
            break
        items.append(shown)
    said += filter(None, [not_found(missing, originals.source if originals is not None else "")])
    left = f"{len(items):,} of {len(store):,} samples are shown." if len(items) < len(store) else ""
    if len(items) < count:
        left += f" More would have made this file too large; --max-mb says how large it may be ({room:,} bytes)."
    gallery = Gallery("Samples", items, _hint(items), left.strip())
    remarks: list[Part] = [Remarks(list(dict.fromkeys(said)))] if said else []
    return [*([gallery] if items or left else []), *remarks]


def _hint(items: Sequence[Picture]) -> str:
    if any(item.original and item.decoded for item in items):
        return (
            "Drag across a picture, or focus it and press the arrow keys: original at the left of the line, "
            "reconstruction at the right. Differences are shown four times as large as they are. Large pictures are "
            "reduced; the numbers are of the whole ones."
        )
    return "Large pictures are reduced."


def _decoded(tokenizer: Tokenizer | None, tokens: TokenTensor, said: list[str]) -> Tensor | None:
    if tokenizer is None:
        return None
    try:
        with evaluating(tokenizer):
            return tokenizer.decode(tokens)[0]
    except (NotImplementedError, ValueError) as error:
        said.append(f"Reconstructions are not shown: {error}")
        return None


def _original(
    originals: Originals | None, row: dict[str, Any], tokenizer: Tokenizer | None, missing: list[str], said: list[str]
) -> Tensor | None:
    if originals is None:
        return None
    try:
        found = originals.read(row, getattr(tokenizer, "preprocess", Preprocess()))
    except (ValueError, OSError) as error:
        said.append(f"An original is not shown: {error}")
        return None
    if found is None:
        missing.append(row["key"])
    return found


def _picture(
    row: dict[str, Any], tokens: TokenTensor, color: Rgb, original: Tensor | None, decoded: Tensor | None, total: int
) -> Picture:
    count = int(tokens.valid_lengths[0])
    numbers = [f"{row['width']} × {row['height']} px", f"{count:,} tokens"]
    if original is not None and decoded is not None and original.shape == decoded.shape:
        pair = decoded[None], original[None]
        numbers.append(f"PSNR {float(psnr(*pair)):.2f} dB")
        if min(original.shape[1:]) >= 11:
            numbers.append(f"SSIM {float(ssim(*pair)):.3f}")
    caption = row["caption"] or ""
    return Picture(
        row["key"],
        ", ".join(numbers),
        caption if len(caption) <= _LONGEST else caption[:_LONGEST] + " ...",
        None if original is None else inline_picture(to_picture(original)),
        None if decoded is None else inline_picture(to_picture(decoded)),
        _map(row, tokens, color),
        _strip(tokens, color, total),
    )


def _map(row: dict[str, Any], tokens: TokenTensor, color: Rgb) -> TokenMap | None:
    """Cells over the picture, of tokens that are cells of it."""
    spec = tokens.spec
    if len(spec.grid) != 2 or spec.order != "raster" or len(color) - spec.prefix != spec.grid[0] * spec.grid[1]:
        return None
    rows, cols = spec.grid
    size = (spec.image_size[0], spec.image_size[1]) if len(spec.image_size) == 2 else (row["height"], row["width"])
    used = "" if tokens.indices is None else f", {len(tokens.indices[0].unique(dim=0)):,} different ids"
    text = f"{rows} rows by {cols} columns{used}"
    return token_map(color[spec.prefix :], (rows, cols), spec.patch, size, text)


def _strip(tokens: TokenTensor, color: Rgb, total: int) -> TokenStrip | None:
    """Slots of tokens that are no cells of the picture."""
    if tokens.spec.order == "raster" or not total:
        return None
    slots = _source(tokens)
    return token_strip(color, slots, total, f"{len(slots)} of {total} slots hold a token.")


def _source(tokens: TokenTensor) -> np.ndarray[Any, np.dtype[np.int64]]:
    count = int(tokens.valid_lengths[0])
    source = torch.arange(count) if tokens.source is None else tokens.source[0, :count]
    return source.numpy().astype(np.int64)


def _slots(tokens: TokenTensor, tokenizer: Tokenizer | None) -> int:
    """How many slots there are to sit in: what the tokenizer says, at least those that are taken."""
    source = _source(tokens)
    said = getattr(tokenizer, "budget", 0)
    return max(said if isinstance(said, int) else 0, int(source.max()) + 1 if len(source) else 0)


def _colors(tokens: Sequence[TokenTensor]) -> list[Rgb]:
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
