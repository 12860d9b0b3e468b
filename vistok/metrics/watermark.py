"""What a watermark in ids costs and what it survives: decoding, 8 bits, JPEG, and encoding again.

B pictures, N tokens, n marked places.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vistok.codecs.watermark import Scorer, Watermark, best_places
from vistok.metrics.image_codecs import to_picture
from vistok.metrics.reconstruction import psnr
from vistok.tokens import TokenTensor

Attack = Callable[[Tensor], Tensor]
"""images [B, 3, H, W] in [0, 1] -> the same."""


def eight_bits(images: Tensor) -> Tensor:
    """Images as any file without loss keeps them."""
    return (images.clamp(0, 1) * 255).round() / 255


def jpeg(quality: int) -> Attack:
    """Images as a JPEG of that quality (4:2:0) gives them back."""

    def through(images: Tensor) -> Tensor:
        found = []
        for image in images:
            file = io.BytesIO()
            to_picture(image).save(file, "JPEG", quality=quality)
            found.append(torch.from_numpy(np.array(Image.open(file))))
        return torch.stack(found).permute(0, 3, 1, 2).float() / 255

    return through


ATTACKS: dict[str, Attack] = {
    "re-encoded": eight_bits,
    "jpeg 90": jpeg(90),
    "jpeg 75": jpeg(75),
    "jpeg 50": jpeg(50),
}


@dataclass(frozen=True)
class Marking:
    """One way to mark: its name, the key's places or those of a scorer, and how many tokens."""

    name: str
    count: int
    scorer: Scorer | None = None

    def places(self, watermark: Watermark, tokens: TokenTensor) -> Tensor:
        """Places [B, n] in what is at hand: a detector sees other ids than the embedder, never the key's pad."""
        ids = _ids(tokens)
        if self.scorer is None:
            return watermark.random_places(ids.shape[1], self.count, len(ids))
        codes = watermark.codebook[ids].unflatten(1, tokens.spec.grid)
        return best_places(self.scorer(codes), self.count)


@dataclass(frozen=True)
class Survival:
    """matches: share of places whose class is right; found: share of pictures detected; places: share found again;
    symbols: share of the message read right."""

    matches: float
    found: float
    places: float
    symbols: float


@dataclass(frozen=True)
class WatermarkResult:
    """marking, marked tokens; changed: share of them whose id changed; psnr_plain, psnr_marked against the original;
    psnr_between: marked against unmarked reconstruction; survival by attack; trials on unmarked pictures, false_found
    of them."""

    marking: str
    count: int
    threshold: int
    changed: float
    psnr_plain: float
    psnr_marked: float
    psnr_between: float
    survival: dict[str, Survival]
    trials: int
    false_found: int

    @property
    def false_rate(self) -> float:
        """Share of unmarked pictures that were taken for marked."""
        return self.false_found / max(1, self.trials)


@torch.inference_mode()
def measure_watermark(
    tokenizer: Any,
    images: Tensor,
    watermark: Watermark,
    marking: Marking,
    *,
    message: Tensor | None = None,
    rate: float = 1e-3,
    keys: int = 50,
    attacks: Sequence[str] = tuple(ATTACKS),
) -> WatermarkResult:
    """Mark images [B, 3, H, W] in [0, 1] and attack them; look for `keys` other keys in each unmarked picture.

    Raises: KeyError for an unknown attack; ValueError for a tokenizer of no codebook or of several.
    """
    from vistok.codecs.watermark import threshold

    tokens = tokenizer.encode(images)
    ids = _ids(tokens)
    plain = tokenizer.decode(tokens)
    places = marking.places(watermark, tokens)
    marked_ids = watermark.embed(ids, places, message)
    marked = tokenizer.decode(replace(tokens, indices=marked_ids, embeds=None))
    survival = {}
    for name in attacks:
        again = tokenizer.encode(ATTACKS[name](marked))
        there = marking.places(watermark, again)
        seen = watermark.detect(_ids(again), there, message, rate=rate)
        length = 1 if message is None else len(message)
        read = watermark.read(_ids(again), there, length)
        wanted = torch.zeros(1, dtype=torch.int64) if message is None else message
        both = (places[:, :, None] == there[:, None]).any(-1)
        survival[name] = Survival(
            _share(seen.matches) / marking.count, _share(seen.found), _share(both), _share(read == wanted)
        )
    unmarked = tokenizer.encode(eight_bits(plain))
    found = 0
    for number in range(keys):
        other = replace(watermark, key=f"{watermark.key}, not used {number}")
        there = marking.places(other, unmarked)
        found += int(other.detect(_ids(unmarked), there, message, rate=rate).found.sum())
    changed = marked_ids.gather(1, places) != ids.gather(1, places)
    return WatermarkResult(
        marking.name,
        marking.count,
        threshold(marking.count, rate, watermark.modulus),
        _share(changed),
        float(psnr(plain, images)),
        float(psnr(marked, images)),
        float(psnr(marked, plain)),
        survival,
        keys * len(images),
        found,
    )


def _ids(tokens: TokenTensor) -> Tensor:
    if tokens.indices is None or tokens.indices.ndim != 2:
        raise ValueError(f"watermark: expected tokens of one codebook, got {tokens}; take a tokenizer such as vq_nano")
    return tokens.indices


def _share(values: Tensor) -> float:
    return float(values.double().mean())
