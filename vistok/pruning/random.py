"""A random subset of the tokens, the other baseline.

The generator gives one 62-bit seed per item, in batch order; a token's rank comes from a hash of (seed, slot). So the
choice depends neither on the padding nor on what else is in the batch: items taken one after the other with one
generator get what they get together. Hash: splitmix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
generators, 2014).
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor

_GAMMA, _MIX1, _MIX2 = (value - 2**64 for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_LAST = torch.iinfo(torch.int64).max


@register
class Random:
    """Keeps a uniformly random subset, without replacement. In compiled code leave `generator` out: none can enter."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"generator"})

    def select(
        self, tokens: TokenTensor, budget: Budget, *, generator: torch.Generator | None = None, **context: Any
    ) -> Selection:
        """Slots [B, K] ascending; generator: None is torch's own, one draw per item.

        Raises: TypeError for other context, ValueError for a budget out of range.
        """
        refuse_context("random", context, self.needs)
        slots, counts = kept_tokens(tokens, budget)
        seeds = _draw_seeds(len(tokens), generator).to(tokens.device)
        position = torch.arange(tokens.num_slots, device=tokens.device)
        keys = _splitmix64(seeds[:, None] + position * _GAMMA).masked_fill(~tokens.mask, _LAST)
        ranks = keys.argsort(dim=1, stable=True).argsort(dim=1)
        return as_selection(tokens, best_slots(ranks, slots, counts), counts, budget)


def _draw_seeds(items: int, generator: torch.Generator | None) -> Tensor:
    """[items] int64, drawn one by one: on a GPU one draw of several numbers is not several draws of one."""
    device = torch.device("cpu") if generator is None else generator.device
    draws = [torch.randint(2**62, (1,), generator=generator, device=device) for _ in range(items)]
    return torch.cat(draws) if draws else torch.empty(0, dtype=torch.int64)


def _splitmix64(state: Tensor) -> Tensor:
    """A permutation of the 64-bit numbers that looks random, elementwise; overflow wraps."""
    state = (state ^ _shift(state, 30)) * _MIX1
    state = (state ^ _shift(state, 27)) * _MIX2
    return state ^ _shift(state, 31)


def _shift(state: Tensor, bits: int) -> Tensor:
    shifted: Tensor = (state >> bits) & (2 ** (64 - bits) - 1)  # torch shifts the sign in
    return shifted
