"""Masks of single things as PaliGemma (arXiv:2407.07726) writes them: four loc tokens of the box, then 4 x 4 of AiT's
VQ-VAE (arXiv:2301.02229) for what the box holds.

Encode: the box's pixels, from round(y1 H) to round(y2 H) and so on, resized to S x S (bilinear, antialiased).
Decode: S x S resized to the box, kept where > 1/2, put at int(y1 H), int(x1 W). Local codes are 1,024 bins of loc, then
128 of seg, as in PaliGemma's vocabulary. N things, each in a picture of H x W pixels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F

from vistok.codecs import _labels as labelling
from vistok.codecs._authors_keys import under_network
from vistok.codecs._bins import Bins
from vistok.codecs._item_ids import ids_of_spans, item_ids
from vistok.codecs._token_strings import loc_codes, seg_codes
from vistok.codecs._token_text import Scanner, Word, runs
from vistok.layers.ait_vqvae import AitVqvae
from vistok.protocols import ParseError, Span
from vistok.registry import register
from vistok.tokens import TokenSpec, TokenTensor

_BOX = 4
_LOC_BINS = 1024
_HALF = 0.5


@register
class Masks(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """Masks [N, H, W] to ids [N, 20] and back to masks of the same size."""

    cannot: frozenset[str] = frozenset()
    weights_under = ("weights",)

    def __init__(self, *, image_size: int = 64, network: dict[str, Any] | None = None) -> None:
        """image_size: S; network: settings of `AitVqvae`, whose maps are 0..1 (`use_norm`).

        Raises: ValueError for settings that it refuses, or an image_size that is no multiple of its downsample.
        """
        super().__init__()
        self.name, self.image_size = "masks", image_size
        self.network = AitVqvae(**{"downsample": 16, **(network or {}), "use_norm": True})
        if image_size < 1 or image_size % self.network.downsample:
            raise ValueError(
                f"masks: expected image_size to be a multiple of the network's downsample {self.network.downsample}, "
                f"got {image_size}"
            )
        self.grid = (image_size // self.network.downsample,) * 2
        self.bins = Bins(_LOC_BINS, "ends")
        self.codes = (*loc_codes(_LOC_BINS), *seg_codes(len(self.network.codebook)))
        self._scanner = Scanner(self.codes, (), r"<(?:loc|seg)[^<>\s]*>?")

    @property
    def strings(self) -> tuple[str, ...]:
        """All tokens, which are all codes: loc, then seg."""
        return self.codes

    @property
    def num_tokens(self) -> int:
        """Four of the box and those of the network's grid."""
        return _BOX + self.grid[0] * self.grid[1]

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this codec share; the size of the picture comes with what was encoded."""
        return TokenSpec(self.name, 0, (len(self.codes),), order="1d")

    def encode(self, values: Tensor, boxes: Tensor | None = None) -> TokenTensor:
        """values [N, H, W], bool, float in 0..1 or uint8 in 0..255; boxes [N, 4] (x1, y1, x2, y2) in 0..1 -> [N, 20].

        Without boxes, the tight ones of what is above one half. Raises: ValueError naming a wrong shape, values out of
        range, a mask with nothing in it, or a box that is none.
        """
        masks = self._checked(values)
        boxes = tight_boxes(masks > _HALF) if boxes is None else boxes.float()
        if boxes.shape != (len(masks), _BOX) or bool((boxes[:, 2:] < boxes[:, :2]).any()):
            raise ValueError(f"masks: expected boxes [{len(masks)}, 4] with x1 <= x2, y1 <= y2, got {boxes.tolist()}")
        places = self.bins.of(boxes)[:, [1, 0, 3, 2]]
        size = masks.shape[1], masks.shape[2]
        cuts = torch.stack([self._cut(mask, box, size) for mask, box in zip(masks, boxes, strict=True)])
        ids = self.network.encode(cuts) + _LOC_BINS
        indices = torch.cat((places.to(ids.device), ids.flatten(1)), 1)
        return TokenTensor(spec=replace(self.spec, image_size=size), indices=indices)

    @torch.no_grad()
    def decode(self, tokens: TokenTensor, size: tuple[int, int] | None = None) -> Tensor:
        """Tokens [N, 20] -> masks [N, H, W] bool there; size: (H, W) of the picture, that of `encode` if not given.

        A box that is less than a pixel wide or high leaves its mask empty.
        Raises: ValueError for ids that are no mask, or if the size is not known.
        """
        size = size or tokens.spec.image_size[:2]  # type: ignore[assignment]
        if not size:
            raise ValueError("masks: tokens from a text do not know the size of their picture; pass size=(H, W)")
        height, width = size
        ids = self._ids(tokens)
        patterns = self.network.decode((ids[:, _BOX:] - _LOC_BINS).unflatten(1, self.grid))
        # The reference takes int(i / 1023 * H) in float64; float32 would put some edges a pixel off.
        sides = torch.tensor([height, width, height, width], device=ids.device)
        places = ids[:, :_BOX].double() / (_LOC_BINS - 1) * sides
        masks = torch.zeros(len(ids), height, width, dtype=torch.bool, device=ids.device)
        for mask, pattern, corners in zip(masks, patterns, places.long().tolist(), strict=True):
            top, left, bottom, right = corners
            if bottom > top and right > left:
                resized = F.interpolate(pattern[None], (bottom - top, right - left), mode="bilinear", antialias=True)
                mask[top:bottom, left:right] = resized[0, 0].to(mask.device) > _HALF
        return masks

    def to_text(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> list[str]:
        """One text for each thing: 20 tokens, a space and its label if there is one. Raises: ValueError for a label
        that would not be read back."""
        rows: list[list[int]] = self._ids(tokens).tolist()
        named = labelling.checked(self.name, labels, len(rows), "after")
        return [
            f"{''.join(self.codes[code] for code in row)} {label}".rstrip()
            for label, row in zip(named, rows, strict=True)
        ]

    def joined(self, tokens: TokenTensor, labels: Sequence[str] | None = None) -> str:
        """All things in one text, joined by " ; "."""
        return " ; ".join(self.to_text(tokens, labels))

    def parse(self, text: str) -> list[Span | ParseError]:
        """Every thing in a text with its label, and why tokens that are none are none."""
        groups = runs(text, self._scanner.words(text), "")
        limits = [*(group[0].start for group in groups), len(text)][1:]
        return [self._read(text, group, limit) for group, limit in zip(groups, limits, strict=True)]

    def tokens(self, spans: Sequence[Span]) -> TokenTensor:
        """Spans of `parse` as tokens. Raises: ValueError for codes that are no mask."""
        tokens = TokenTensor(spec=self.spec, indices=ids_of_spans(self.name, spans, self.num_tokens))
        self._ids(tokens)
        return tokens

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The authors' names under ours; our own stay."""
        return under_network(tensors)

    def _read(self, text: str, group: list[Word], limit: int) -> Span | ParseError:
        start, stop = group[0].start, group[-1].stop
        unknown = next((word for word in group if word.code < 0), None)
        if unknown is not None:
            return ParseError(f"expected loc and seg tokens, got {unknown.text[:24]!r}", start, stop)
        codes = [word.code for word in group]
        reason = self._flaw(codes)
        if reason:
            return ParseError(reason, start, stop)
        return Span(tuple(codes), start, stop, labelling.after(text, stop, limit))

    def _flaw(self, codes: Sequence[int]) -> str:
        """Why codes are no mask, "" if they are one."""
        if len(codes) != self.num_tokens:
            return f"expected {_BOX} loc and {self.num_tokens - _BOX} seg tokens, got {len(codes)}"
        if max(codes[:_BOX]) >= _LOC_BINS or min(codes[_BOX:]) < _LOC_BINS:
            return f"expected {_BOX} loc tokens, then {self.num_tokens - _BOX} seg tokens, got them mixed"
        top, left, bottom, right = codes[:_BOX]
        return "" if top < bottom and left < right else f"expected a box with y1 < y2, x1 < x2, got {codes[:_BOX]}"

    def _checked(self, values: Tensor) -> Tensor:
        if values.ndim != 3 or not values.numel():
            raise ValueError(f"masks: expected masks [N, H, W], got {list(values.shape)}")
        masks = values.float() / 255 if values.dtype == torch.uint8 else values.float()
        if not (float(masks.min()) >= 0 and float(masks.max()) <= 1):
            raise ValueError(f"masks: expected values in 0..1, or uint8, got {masks.min():.3g}..{masks.max():.3g}")
        return masks

    def _cut(self, mask: Tensor, box: Tensor, size: tuple[int, int]) -> Tensor:
        """The box's part of mask [H, W] at S x S: [1, S, S]. A box that rounds to nothing is its nearest pixel."""
        height, width = size
        sides = torch.tensor([width, height, width, height], device=box.device)
        left, top, right, bottom = torch.round(box.double() * sides).long().tolist()
        top, left = min(top, height - 1), min(left, width - 1)
        part = mask[None, None, top : max(bottom, top + 1), left : max(right, left + 1)]
        return F.interpolate(part, (self.image_size, self.image_size), mode="bilinear", antialias=True)[0]

    def _ids(self, tokens: TokenTensor) -> Tensor:
        ids = item_ids(self.name, tokens, self.num_tokens, len(self.codes))
        if len(ids) and not int(ids[:, :_BOX].max()) < _LOC_BINS <= int(ids[:, _BOX:].min()):
            raise ValueError(f"masks: expected {_BOX} loc codes, then seg codes in every row, got them mixed")
        return ids


def tight_boxes(masks: Tensor) -> Tensor:
    """masks [N, H, W] bool -> boxes [N, 4] (x1, y1, x2, y2) in 0..1. Raises: ValueError naming an empty mask."""
    found = []
    for place, mask in enumerate(masks):
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        if not len(rows):
            raise ValueError(f"masks: expected something in every mask, got nothing in number {place}; pass boxes")
        height, width = mask.shape
        found.append(
            [
                int(columns[0]) / width,
                int(rows[0]) / height,
                (int(columns[-1]) + 1) / width,
                (int(rows[-1]) + 1) / height,
            ]  # fmt: skip
        )
    return torch.tensor(found).reshape(len(masks), _BOX)
