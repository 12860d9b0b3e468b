"""How healthy a codebook is over a stated number of tokens: usage as tokens went by, perplexity, dead codes, restarts.

usage(t) = |codes seen within the first t tokens| / K;  perplexity = exp(-sum_k p_k ln p_k), p = counts / tokens;
bits per token = log2 perplexity. For every code the place of the token that used it first is kept, from which usage
follows for any t, and of two reports on streams that follow one another that of both is exact.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from vistok.ops.code_usage import code_counts, perplexity

_NEVER = torch.iinfo(torch.int64).max


@dataclass(eq=False)
class CodebookHealth:
    """Of one codebook of K codes: counts [K] int64, first_seen [K] int64 (token that used it first), restarts."""

    LARGEST: ClassVar[int] = 1 << 26
    counts: Tensor
    first_seen: Tensor
    restarts: int = 0

    @classmethod
    def empty(cls, codebook_size: int) -> Self:
        """Nothing seen yet. Raises: ValueError for a size below 1, or above 2^26 (two int64 for each code)."""
        if not 1 <= codebook_size <= cls.LARGEST:
            raise ValueError(
                f"CodebookHealth: expected 1..{cls.LARGEST} codes, got {codebook_size}; of larger codebooks look at "
                "the usage and perplexity in a quantizer's stats"
            )
        return cls(torch.zeros(codebook_size, dtype=torch.int64), torch.full((codebook_size,), _NEVER))

    @property
    def tokens(self) -> int:
        """Tokens seen, padding not counted."""
        return int(self.counts.sum())

    def add(self, indices: Tensor, *, restarts: int = 0) -> None:
        """Take in ids [...] int64, in the order of their tokens; -1 is padding. restarts: of dead codes in this step.

        Raises: ValueError for ids outside -1..K-1.
        """
        ids = indices.detach().reshape(-1).cpu()
        ids = ids[ids != -1]
        if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < len(self.counts):
            raise ValueError(
                f"CodebookHealth: expected ids in 0..{len(self.counts) - 1}, or -1 for no token, got "
                f"{int(ids.min())}..{int(ids.max())}"
            )
        place = self.tokens + torch.arange(len(ids))
        self.first_seen = self.first_seen.scatter_reduce(0, ids, place, "amin")
        self.counts = self.counts + code_counts(ids, len(self.counts))
        self.restarts += restarts

    def merged(self, later: Self) -> Self:
        """The report on this stream with `later` behind it, as if one had seen both.

        Raises: ValueError if the codebooks differ in size.
        """
        if len(later.counts) != len(self.counts):
            raise ValueError(
                f"CodebookHealth: expected reports of one codebook, got {len(self.counts)} and "
                f"{len(later.counts)} codes"
            )
        moved = later.first_seen.where(later.first_seen == _NEVER, later.first_seen + self.tokens)
        first_seen = torch.minimum(self.first_seen, moved)
        return type(self)(self.counts + later.counts, first_seen, self.restarts + later.restarts)

    def usage(self, tokens: int | None = None) -> float:
        """Share of codes that the first `tokens` tokens used; None: all."""
        seen = self.counts > 0 if tokens is None else self.first_seen < tokens
        return float(seen.double().mean())

    def report(self, points: int = 10) -> dict[str, Any]:
        """Plain data for JSON; usage_by_tokens: [tokens, usage] at up to `points` counts, each twice the one before."""
        tokens, found = self.tokens, float(perplexity(self.counts))
        at = sorted({tokens >> halvings for halvings in range(points)} - {0})
        return {
            "codes": len(self.counts),
            "tokens": tokens,
            "usage": self.usage(),
            "usage_by_tokens": [[count, self.usage(count)] for count in at],
            "dead_codes": int((self.counts == 0).sum()),
            "perplexity": found,
            "bits_per_token": math.log2(found),
            "restarts": self.restarts,
        }


def health_of(codebook_sizes: tuple[int, ...], indices: Tensor) -> list[CodebookHealth]:
    """One report for each of Q codebooks: indices [...] int64 if there is one, else [..., Q].

    Raises: ValueError if the ids do not fit the codebooks.
    """
    columns = indices.unsqueeze(-1) if len(codebook_sizes) == 1 else indices
    if not columns.ndim or columns.shape[-1] != len(codebook_sizes):
        raise ValueError(f"health_of: expected ids [..., {len(codebook_sizes)}], got {list(indices.shape)}")
    reports = [CodebookHealth.empty(size) for size in codebook_sizes]
    for report, ids in zip(reports, columns.unbind(-1), strict=True):
        report.add(ids)
    return reports
