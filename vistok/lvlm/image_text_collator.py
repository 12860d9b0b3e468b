"""Images as ids among text, padded and labelled for next-token training (SEED-LLaMA, arXiv:2310.01218).

A sample is a sequence of parts, each a text or the codes of one image. With two parts, an image and a text, the image
goes first with probability `reverse_ratio`, else the text does. bos + parts + eos. B samples, n ids of the longest.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from vistok.lvlm.vocabulary import VocabMap
from vistok.tokens import TokenTensor

IGNORED = -100

Part = str | Tensor | TokenTensor
Sample = Sequence[Part]


class CaptionedTokens(Dataset[tuple[TokenTensor, str]]):
    """Images of a token store with their captions as samples; those without a caption are left out."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self._captions = [(place, row["caption"]) for place, row in enumerate(store.rows) if row.get("caption")]

    def __len__(self) -> int:
        return len(self._captions)

    def __getitem__(self, index: int) -> tuple[TokenTensor, str]:
        place, caption = self._captions[index]
        return self._store[place], caption

    def __iter__(self) -> Iterator[tuple[TokenTensor, str]]:
        return (self[index] for index in range(len(self)))


@dataclass
class ImageTextCollator:
    """Samples to a batch: input_ids, attention_mask, labels, each [B, n] int64, padded on the right.

    reverse_ratio: how often the image of a pair goes first. mask_first: no labels for the first part of a pair (nor for
    bos), so that the model learns to name what it sees and to draw what it reads, not to guess either alone.
    max_length: of a sample, with bos and eos. generator: of the order; equal generators give equal batches.
    """

    tokenizer: Any
    vocabulary: VocabMap
    reverse_ratio: float = 0.5
    mask_first: bool = False
    max_length: int | None = None
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    def __post_init__(self) -> None:
        if not 0 <= self.reverse_ratio <= 1:
            raise ValueError(f"reverse_ratio: expected 0 to 1, got {self.reverse_ratio}")
        self._padding = padding_id(self.tokenizer)

    def __call__(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """Raises: ValueError if there are no samples, one is empty or too long, or an image does not fit."""
        if not samples:
            raise ValueError("image_text_collator: expected at least one sample, got none")
        rows = [self._row(sample, place) for place, sample in enumerate(samples)]
        return padded_rows(rows, self._padding)

    def part_ids(self, part: Part) -> Tensor:
        """The ids [n] of a text or of an image, without bos and eos."""
        if isinstance(part, str):
            return torch.tensor(self.tokenizer(part, add_special_tokens=False).input_ids, dtype=torch.int64)
        codes = _codes(part, self.vocabulary)
        if self.vocabulary.size_end is None:
            return self.vocabulary.span(codes)
        rows, columns = codes.shape
        size = self.tokenizer(f"{rows}*{columns}", add_special_tokens=False).input_ids
        return self.vocabulary.span(codes, size)

    def _row(self, sample: Sample, place: int) -> tuple[Tensor, Tensor]:
        if isinstance(sample, str) or not len(sample):
            raise ValueError(f"sample {place}: expected a sequence of texts and images, got {sample!r}")
        parts, pair = list(sample), self._is_pair(sample)
        if pair:
            image_first = float(torch.rand((), generator=self.generator)) < self.reverse_ratio
            parts.sort(key=lambda part: isinstance(part, str) == image_first)
        pieces = [self.part_ids(part) for part in parts]
        begin, end = (
            torch.tensor([] if number is None else [number], dtype=torch.int64)
            for number in (self.tokenizer.bos_token_id, self.tokenizer.eos_token_id)
        )
        ids = torch.cat((begin, *pieces, end))
        if self.max_length is not None and len(ids) > self.max_length:
            raise ValueError(
                f"sample {place}: expected at most max_length={self.max_length} ids, got {len(ids)}; shorten its text, "
                "an image cannot be cut"
            )
        labels = ids.clone()
        if pair and self.mask_first:
            labels[: len(begin) + len(pieces[0])] = IGNORED
        return ids, labels

    @staticmethod
    def _is_pair(sample: Sample) -> bool:
        return len(sample) == 2 and sum(isinstance(part, str) for part in sample) == 1


def padded_rows(rows: Sequence[tuple[Tensor, Tensor]], padding: int) -> dict[str, Tensor]:
    """Ids [n] and labels [n] of each sample as input_ids, attention_mask and labels [B, n], padded on the right."""
    lengths = torch.tensor([len(ids) for ids, _ in rows])
    ids = pad_sequence([ids for ids, _ in rows], batch_first=True, padding_value=padding)
    labels = pad_sequence([labels for _, labels in rows], batch_first=True, padding_value=IGNORED)
    mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def padding_id(tokenizer: Any) -> int:
    """What a tokenizer pads with: pad, else unk, else eos. Raises: ValueError if it has none of them."""
    for number in (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id):
        if number is not None:
            return int(number)
    raise ValueError("image_text_collator: expected a tokenizer with a pad, unk or eos token, got one with none")


def _codes(part: Tensor | TokenTensor, vocabulary: VocabMap) -> Tensor:
    """Codes [N], or [h, w] if the vocabulary has ends of rows."""
    if isinstance(part, Tensor):
        return part
    if len(part) != 1 or part.indices is None or part.indices.ndim != 2:
        raise ValueError(
            f"image: expected the tokens of one image with indices [1, N] of one codebook, got {part!r}; a family and "
            "a map for each codebook would tell several apart"
        )
    codes: Tensor = part.indices[0, : int(part.valid_lengths[0])]
    if vocabulary.row_end is None and vocabulary.size_end is None:
        return codes
    grid = part.spec.grid
    if len(grid) != 2 or grid[0] * grid[1] != len(codes):
        raise ValueError(f"image: expected all tokens of a grid for rows with an end, got {len(codes)} of {grid}")
    return codes.reshape(grid)
