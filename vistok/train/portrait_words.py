"""Portraits' ids and the words that they show as one sequence for a small language model, in either order.

Every token is a row of digits: those of an id, then the place of a word; what it is not is -1. Naming is
"<s> ids <image> words", drawing "<s> words <image> ids". B pictures, N ids each, Q digits of an id, S = N + 6 tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.layers.digit_codes import DigitEmbedding, draw_digits, split_digits
from vistok.train.portrait_reader import ATTRIBUTES

BEGIN, IMAGE = "<s>", "<image>"
WORDS = (BEGIN, IMAGE, *(word for values in ATTRIBUTES.values() for word in values))
_FIRST = [WORDS.index(values[0]) for values in ATTRIBUTES.values()]


def sequences(ids: Tensor, shown: Tensor | None, sizes: Sequence[int], picture_first: bool) -> Tensor:
    """ids [B, N], shown [B, 4] places among the values of each attribute -> digits [B, S, Q + 1] int64.

    shown None: the picture alone, "<s> ids".
    """
    pictures = nn.functional.pad(split_digits(ids, sizes), (0, 1), value=-1)
    begin, image = (word_rows(torch.full((len(ids), 1), WORDS.index(mark)), len(sizes)) for mark in (BEGIN, IMAGE))
    if shown is None:
        return torch.cat([begin, pictures], 1)
    words = word_rows(shown + torch.tensor(_FIRST), len(sizes))
    parts = (pictures, image, words) if picture_first else (words, image, pictures)
    return torch.cat([begin, *parts], 1)


def word_rows(places: Tensor, digits: int) -> Tensor:
    """Places [B, n] among WORDS -> rows [B, n, digits + 1] that are words."""
    return nn.functional.pad(places[..., None], (digits, 0), value=-1)


class PictureWriter(nn.Module):
    """A Llama without rows of its own: digits in, digits out."""

    def __init__(self, llama: nn.Module, width: int, sizes: Sequence[int]) -> None:
        """sizes: alphabets of the digits of an id."""
        super().__init__()
        self.id_sizes, self.sizes = tuple(sizes), (*sizes, len(WORDS))
        self.embed = DigitEmbedding(self.sizes, width)
        self.llama = llama
        self.head = nn.Linear(width, sum(self.sizes))

    def forward(self, digits: Tensor) -> tuple[Tensor, Tensor]:
        """digits [B, S, Q + 1] -> what the last layer reads and what it writes behind the norm, [B, S, W] each."""
        body = self.llama.get_submodule("model")
        found = body(inputs_embeds=self.embed(digits), output_hidden_states=True, use_cache=False)
        return found.hidden_states[-2], found.last_hidden_state

    def unembed(self, hidden: Tensor) -> Tensor:
        """hidden [B, S, W] behind the norm -> logits [B, S, sum of sizes]."""
        logits: Tensor = self.head(hidden)
        return logits

    @torch.no_grad()
    def name(self, ids: Tensor) -> Tensor:
        """The attributes that are said greedily behind ids [B, N]: [B, 4], places among the values of each.

        Each word is the likeliest of its attribute's, since the order of attributes never changes.
        """
        prompt = sequences(ids, torch.zeros(len(ids), len(_FIRST), dtype=torch.int64), self.id_sizes, True)
        prompt = prompt[:, : -len(_FIRST)]
        said = []
        for first, values in zip(_FIRST, ATTRIBUTES.values(), strict=True):
            words = self.unembed(self(prompt)[1][:, -1]).split(list(self.sizes), -1)[-1]
            said.append(words[:, first : first + len(values)].argmax(-1))
            prompt = torch.cat([prompt, word_rows(first + said[-1][:, None], len(self.id_sizes))], 1)
        return torch.stack(said, 1)

    @torch.no_grad()
    def draw(self, shown: Tensor, tokens: int, temperature: float, generator: torch.Generator) -> Tensor:
        """Digits [B, tokens, Q] drawn behind attributes [B, 4]."""
        prompt = sequences(torch.zeros(len(shown), 0, dtype=torch.int64), shown, self.id_sizes, False)
        start = prompt.shape[1]
        of_ids = sum(self.id_sizes)
        for _ in range(tokens):
            logits = self.unembed(self(prompt)[1][:, -1])[:, :of_ids]
            digits = draw_digits(logits, self.id_sizes, temperature, generator)
            prompt = torch.cat([prompt, nn.functional.pad(digits, (0, 1), value=-1)[:, None]], 1)
        return prompt[:, start:, :-1]
