"""ToMe: Token Merging, Your ViT But Faster, arXiv:2210.09461.

Tokens are split into A (even places) and B (odd ones); every a takes its most similar b by cosine, and the r closest
pairs become their mean, weighted by how many tokens each stands for, at the place of b (vistok.ops.bipartite_match).
stage "tower": as in the paper, between attention and MLP of every block of the vision tower, by the keys' mean over
heads, with log(size) added to the attention on merged tokens; the class token stays out. stage "input": on the tokens
at the decoder's input, by their embeds, half of them at most in one round, until the budget is met.
The paper takes the same r in every block; here the blocks share what the budget leaves to merge.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.ops import bipartite_match, merge
from vistok.ops.budget import kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.pruning._embeds import embeds_of
from vistok.registry import register
from vistok.tokens import Assignment, Selection, TokenTensor

STAGES = ("tower", "input")


@register
class Tome:
    """Merges similar tokens, inside the vision tower or in front of the language model."""

    cannot: frozenset[str] = frozenset({"fullgraph"})  # items of different lengths merge in different numbers of rounds
    needs: frozenset[str] = frozenset()

    def __init__(self, *, stage: str = "input", proportional: bool = False) -> None:
        """stage: "tower" merges in models whose tower has blocks that `vistok.lvlm.prune` can reach, and only there.

        proportional: whether a merged token weighs log(size) in the decoder's attention, too.
        Raises: ValueError naming the setting.
        """
        if stage not in STAGES:
            raise ValueError(f"tome: expected stage to be one of {STAGES}, got {stage!r}")
        self.merges_in_tower = stage == "tower"
        self.proportional = proportional

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending: the tokens that the others join.

        Raises: TypeError for any context; ValueError for a budget out of range or tokens without embeds.
        """
        return self._match(tokens, budget, context)[0]

    def reduce(self, tokens: TokenTensor, budget: Budget, **context: Any) -> TokenTensor:
        """The tokens of `select` with the mean of all that joined them as embeds and scores. Raises: as `select`."""
        selection, assignment = self._match(tokens, budget, context)
        merged = tokens.merge(assignment).token_tensors()
        means = {name: value for name, value in merged.items() if name in ("embeds", "scores", "sizes")}
        return tokens.select(selection).replace(**means)

    def blocks(self, tokens: int, blocks: int, budget: Budget) -> list[int]:
        """How many tokens each block of a tower merges, so that the budget is left behind the last one.

        Raises: ValueError for a budget per item, or one that halving in every block does not reach.
        """
        if isinstance(budget, Tensor):
            raise ValueError("tome: expected one budget for all images in the vision tower, got one for each")
        wanted = min(budget, tokens) if isinstance(budget, int) else max(1, round(budget * tokens))
        steps = []
        for left in range(blocks, 0, -1):
            # An even share, or more where the blocks behind could not make up for it: each halves at most.
            share = max(-(-(tokens - wanted) // left), tokens - wanted * 2 ** (left - 1))
            steps.append(min(tokens // 2, share))
            tokens -= steps[-1]
        if tokens > wanted:
            raise ValueError(
                f"tome: expected a budget of {tokens} tokens or more, to which {blocks} blocks of the tower can merge, "
                f"got {budget}; take stage='input'"
            )
        return steps

    def targets(self, pairs: Assignment) -> Tensor:
        """The token [B, S] int64 of every slot of a match at whose place the slot stands."""
        return targets(pairs)

    @torch.no_grad()
    def _match(self, tokens: TokenTensor, budget: Budget, context: dict[str, Any]) -> tuple[Selection, Assignment]:
        refuse_context("tome", context, self.needs)
        embeds = embeds_of("tome", tokens)
        slots, counts = kept_tokens(tokens, budget)
        sizes = torch.ones(tokens.mask.shape, device=tokens.device) if tokens.sizes is None else tokens.sizes
        if tokens.lengths is None and not isinstance(budget, Tensor):
            slot, places = merged_slots(embeds, sizes, slots)
            return Selection(places), Assignment(slot, slots)
        slot = torch.full(tokens.mask.shape, -1, device=tokens.device)
        index = torch.zeros(len(tokens), slots, dtype=torch.int64, device=tokens.device)
        for row, (length, count) in enumerate(zip(tokens.valid_lengths.tolist(), counts.tolist(), strict=True)):
            if count:
                own = slice(row, row + 1)
                found, places = merged_slots(embeds[own, :length], sizes[own, :length], count)
                slot[row, :length], index[row, :count] = found[0], places[0]
        return Selection(index, counts), Assignment(slot, slots)


def merged_slots(metric: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Slot [B, N] int64 of every token after merging to `count`, and the place [B, count] int64 of every slot.

    metric [B, N, C] float, sizes [B, N].
    """
    slot = torch.arange(metric.shape[1], device=metric.device).expand(metric.shape[:2])
    places = slot
    while metric.shape[1] > count:
        pairs = bipartite_match(metric, metric.shape[1] - count)
        places = places.gather(1, targets(pairs))
        metric, sizes = merge(metric, pairs, sizes)
        slot = pairs.slot.gather(1, slot)
    return slot, places


def targets(pairs: Assignment) -> Tensor:
    """The token [B, S] int64 of every slot of a match that the others have joined: its odd one, or the only one."""
    count = pairs.slot.shape[1]
    position = torch.arange(count, device=pairs.slot.device).expand_as(pairs.slot)
    key = position + count * (position % 2)
    best = key.new_full((len(key), pairs.count), -1).scatter_reduce(1, pairs.slot, key, "amax")
    return best % count
