"""Samples of a store as pictures: originals where they can be found, reconstructions where they can be decoded."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vistok.data.store import TokenStore
from vistok.layers.preprocess import Preprocess
from vistok.metrics.round_trip import evaluating
from vistok.protocols import Tokenizer
from vistok.report.gallery import Gallery, Picture
from vistok.report.originals import Originals, not_found
from vistok.report.page import Part
from vistok.report.parts import Remarks
from vistok.report.token_pictures import slot_count, token_colors, token_picture
from vistok.tokens import TokenTensor


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
    colors = token_colors(tokens)
    total = max((slot_count(each, decoder.tokenizer) for each in tokens), default=0)
    items: list[Picture] = []
    missing: list[str] = []
    said: list[str] = [] if decoder.tokenizer is not None else [f"Reconstructions are not shown: {decoder.why_not}"]
    if originals is None:
        said.append("Originals are not shown: a store does not hold them; say where they are with --images.")
    for index, own, color in zip(chosen, tokens, colors, strict=True):
        row = store.rows[index]
        decoded = _decoded(decoder.tokenizer, own, said)
        original = _original(originals, row, decoder.tokenizer, missing, said)
        shown = token_picture(
            *(row["key"], (row["width"], row["height"]) if row["width"] else None, own, color, total),
            original=original,
            decoded=decoded,
            caption=row["caption"] or "",
        )
        if sum(item.bytes for item in items) + shown.bytes > room:
            break
        items.append(shown)
    said += filter(None, [not_found(missing, originals.source if originals is not None else "")])
    left = f"{len(items):,} of {len(store):,} samples are shown." if len(items) < len(store) else ""
    if len(items) < count:
        left += f" More would have made this file too large; --max-mb says how large it may be ({room:,} bytes)."
    gallery = Gallery("Samples", items, gallery_hint(items), left.strip())
    remarks: list[Part] = [Remarks(list(dict.fromkeys(said)))] if said else []
    return [*([gallery] if items or left else []), *remarks]


def gallery_hint(items: Sequence[Picture]) -> str:
    """How to look at the pictures, in words."""
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
    except (NotImplementedError, ValueError, IndexError) as error:
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
