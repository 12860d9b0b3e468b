"""Spans written with given codes: what a model goes on to say when its own perception tokens are taken away from it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from vistok.lvlm.vocabulary import VocabMap


class ForcedCodes(LogitsProcessor):
    """Where a row's next id is a code, its next given one is the only one left; all else is the model's own.

    Behind a grammar that says where codes stand; greedy search and sampling, since rows are known by their place.
    codes: local codes of every row, in order; where a row has used up its own it writes freely. prompt_length: leading
    ids whose codes do not count. R rows, n ids, V scores.
    """

    def __init__(self, vocabulary: VocabMap, codes: Sequence[Sequence[int]], prompt_length: int) -> None:
        self.vocabulary, self.codes, self.prompt_length = vocabulary, codes, prompt_length
        self._family = torch.tensor(vocabulary.codes)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """input_ids [R, n], scores [R, V] -> scores [R, V]. Raises: ValueError for another number of rows."""
        if len(input_ids) != len(self.codes):
            raise ValueError(
                f"forced codes: expected {len(self.codes)} rows, one for each list of codes, got {len(input_ids)}; "
                "search with num_beams=1"
            )
        written = self.vocabulary.is_code(input_ids[:, self.prompt_length :]).sum(1).tolist()
        forced = scores.clone()
        best = scores.argmax(1)
        for row, (count, codes) in enumerate(zip(written, self.codes, strict=True)):
            if count < len(codes) and bool(self.vocabulary.is_code(best[row])):
                forced[row, self._family.to(scores.device)] = float("-inf")
                forced[row, self.vocabulary.codes[codes[count]]] = scores[row, best[row]]
        return forced
