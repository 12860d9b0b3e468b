"""Sweep: worth x difference in one greedy pass, which may end early. A method of our own.

w_i = q_i^weight with q the scorer's worth in 0..1 (vistok.pruning._scorers); the selector picks one token after the
other by w and by how unlike it is to those picked (vistok.pruning._selectors); the stop rule says how many of the
picks an image needs (vistok.pruning._stops), the budget being the most it may have.
The preset "sweep" is what we propose: a determinantal point process (selector "dpp") over w_i = how far a token points
from the mean of all, 1 - cos(x_i, mean) (scorer "distinct"). Background tokens are many and alike, so that the mean is
theirs. k-center, which takes the farthest token whatever it is, spends picks on every shade of background; ToDRE's sum
counts a background once for every token of it, but does not mind that two picks are alike; CDPruner's process does,
and takes its worth from the instruction, where ours needs neither words nor attention and so works with any tower.
Other presets: every scorer with every selector, such as "suppress", in which a pick takes worth from what is like it.
Chosen on 560 validation questions to micro_lvlm, accuracy at 25, 10 and 5 % in %: distinct with dpp 89.5, 83.8, 80.5,
with suppress 89.3, 83.0, 79.5; even with dpp 85.0, 81.6, 79.3; text with suppress 86.6, 81.8, 74.5; CDPruner 88.6,
82.1, 78.8. Test questions stand in the model's card.
"""

from typing import Any

import torch

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.ops.token_choice import finite_tokens
from vistok.ops.token_points import compared
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context, required_context
from vistok.pruning._embeds import embeds_of
from vistok.pruning._picks import pick_ranks
from vistok.pruning._scorers import SCORERS, quality
from vistok.pruning._selectors import SELECTORS
from vistok.pruning._stops import RULES, enough
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class Sweep:
    """Keeps tokens that are worth something and unlike one another, as many as an image needs."""

    def __init__(
        self,
        *,
        scorer: str = "distinct",
        selector: str = "dpp",
        weight: float = 1.0,
        stop: str | None = None,
        threshold: float = 0.0,
    ) -> None:
        """weight: power of the scorer's worth, 0 = none. stop: when an image has enough, by `threshold`; None = never
        before the budget. Raises: ValueError naming the setting.
        """
        for name, value, known in (("scorer", scorer, SCORERS), ("selector", selector, SELECTORS)):
            if value not in known:
                raise ValueError(f"sweep: expected {name} to be one of {tuple(known)}, got {value!r}")
        if stop is not None and stop not in RULES:
            raise ValueError(f"sweep: expected stop to be one of {RULES} or null, got {stop!r}")
        if not weight >= 0:
            raise ValueError(f"sweep: expected weight >= 0, got {weight}")
        self.scorer, self.selector, self.weight = scorer, selector, weight
        self.stop, self.threshold = stop, threshold
        self.needs = SCORERS[scorer].needs
        self.cannot = frozenset() if stop is None else frozenset({"fixed_budget"})

    @torch.no_grad()
    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [B, K] ascending, at most the budget of each item; scores are what the tokens are worth.

        Raises: TypeError for context that the scorer does not take; ValueError for context that it lacks, a budget out
        of range or tokens without embeds.
        """
        refuse_context(f"sweep with scorer {self.scorer!r}", context, self.needs)
        shape = tokens.mask.shape
        for name in sorted(self.needs - {"text", "text_mask"}):
            required_context("sweep", name, context.get(name), *shape)
        embeds = embeds_of("sweep", tokens)
        if "text" in self.needs:
            required_context("sweep", "text", context.get("text"), shape[0], "T", embeds.shape[2])
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask
        usable = valid & finite_tokens(embeds)
        worth = quality(self.scorer, embeds, usable, context)
        points = compared(embeds, usable, "cosine")
        picks = SELECTORS[self.selector](points, worth.pow(self.weight), slots, usable)
        if self.stop is not None:
            counts = counts.minimum(enough(self.stop, self.threshold, points, worth, picks))
        index = best_slots(pick_ranks(picks, valid), slots, counts)
        if self.stop is not None:
            return Selection(index, counts, worth)
        return as_selection(tokens, index, counts, budget)._replace(scores=worth)
