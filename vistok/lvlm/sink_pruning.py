"""What pruners do with the visual tokens that draw attention from everywhere, and what answers owe to those.

A visual token counts as a sink of a prompt if it is one (`vistok.lvlm.sinks`) in any layer of the unpruned model. Of
each pruner: the share of sinks that are left behind the last layer, over the share of all visual tokens that are left;
1 is chance. Of the model: accuracy without the sinks, and with the sinks alone, beside as many tokens drawn at random.

Measured with `sink_report` on micro_lvlm, 56 test questions about scenes of 144 visual tokens (intervals in
brackets): 2.7 % of the visual tokens are sinks, 0 to 1.6 % in a layer; 92 % of them show a thing, of all tokens 25 %.
They are less like the first token than others are (mean cosine 0.23 against 0.43), no activation is massive, the
largest being 9.5 medians. These are no sinks as in large models, which throw attention away on backgrounds: they are
read. Without them the model answers 49 questions and not 53, without as many at random 53.

    answers                          right          pruner, 25 % of the tokens   sinks left   against chance
    all tokens                       94.6 (85-98)   random                       25 %         1.0
    without sinks                    87.5 (76-94)   tome                         27 %         1.1
    without as many at random        94.6 (85-98)   divprune                     65 %         2.6
    sinks only                       42.9 (31-56)   k_center                     68 %         2.7
    as many at random only           33.9 (23-47)   visionzip                    79 %         3.1
                                                    cdpruner                     79 %         3.2
                                                    fastervlm                    82 %         3.3
                                                    todre                        83 %         3.3
                                                    sweep                        89 %         3.6
                                                    prumerge                     93 %         3.7
    between layers, 15 % left behind the last one:  dart                         62 %         4.3
                                                    fastv                        88 %         6.1
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.answer import speak
from vistok.lvlm.context import reads_tower
from vistok.lvlm.inputs import prune_inputs
from vistok.lvlm.prompting import Read, VisualQuestion, batches
from vistok.lvlm.prune import prune
from vistok.lvlm.sinks import SINK_FACTOR, TokenStates, token_states
from vistok.metrics.accuracy import Accuracy, accuracy, exact_matches
from vistok.ops.budget import best_slots
from vistok.protocols import Budget
from vistok.registry import create
from vistok.tokens import Selection, TokenTensor

Shown = Callable[[Any], Tensor]

ALL, NO_SINKS, NO_RANDOM = "all", "without sinks", "without as many at random"
SINKS_ONLY, RANDOM_ONLY = "sinks only", "as many at random only"


class ByMask:
    """Keeps the tokens that the context `keep` [M, N] bool says; at least one of each image."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"keep"})

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [M, N] ascending, the kept ones first; budget: has no say."""
        keep: Tensor = context["keep"].clone()
        keep[:, 0] |= ~keep.any(1)
        counts = keep.sum(1)
        ranks = (~keep).to(torch.int8).argsort(dim=1, stable=True).argsort(dim=1)
        return Selection(best_slots(ranks, int(counts.max()), counts), counts)


@dataclass(frozen=True)
class KeptSinks:
    """Of one pruner: share of all visual tokens and of sinks that it leaves, None where there is no sink."""

    kept: float
    kept_sinks: float | None

    @property
    def lift(self) -> float | None:
        """Sinks against all: 1 by chance, 0 if every sink is gone; None without sinks, or where no token is left."""
        return self.kept_sinks / self.kept if self.kept and self.kept_sinks is not None else None


@dataclass(frozen=True)
class SinkReport:
    """share: of visual tokens that are sinks in some layer; by_layer: in each; massive: of visual tokens in any layer.

    largest_ratio: largest activation of a visual token in medians; attention: what sinks draw of what visual tokens
    receive in shares of even attention, over all layers; similarity: mean cosine of sinks and of other visual tokens
    to the first token, over layers; shown, sinks_shown: share of visual tokens, and of sinks, that show a thing; None
    if nobody told.
    """

    questions: int
    share: float
    by_layer: list[float]
    massive: float
    largest_ratio: float
    attention: float
    similarity: tuple[float | None, float | None]
    shown: float | None
    sinks_shown: float | None
    answers: dict[str, Accuracy]
    pruners: dict[str, KeptSinks] = field(default_factory=dict)


def sink_report(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read,
    *,
    pruners: Sequence[str] = (),
    budget: float = 0.25,
    factor: float = SINK_FACTOR,
    shown: Shown | None = None,
    batch: int = 32,
    max_new_tokens: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> SinkReport:
    """Find the sinks of every question's prompt, ask with and without them, and see which ones each pruner leaves.

    model, processor: as `load_lvlm` gives them, of the LLaVA family, with N visual tokens a picture. pruners: names;
    budget: for each, of the visual tokens. shown: picture -> [N] bool, the tokens that show a thing.
    Raises: ValueError for no questions, pictures with different numbers of tokens, or a model without features.
    """
    if not questions:
        raise ValueError("sink_report: expected at least one question, got none")
    found = _Found()
    answers: dict[str, list[str]] = {}
    draw = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for each in batches(model, processor, questions, read, batch=batch):
            if not each.features or len({len(own) for own in each.features}) > 1:
                raise ValueError("sink_report: expected pictures of one size and a model that takes features (LLaVA's)")
            states = token_states(model, each.inputs)
            sinks = found.add(each.numbers, states, factor)
            for name, keep in _masks(sinks, draw).items():
                inputs = each.inputs if name == ALL else _cut(model, each.inputs, keep)
                said = answers.setdefault(name, [""] * len(questions))
                for number, words in zip(each.numbers, speak(model, processor, inputs, max_new_tokens), strict=True):
                    said[number] = words
            if on_batch is not None:
                on_batch(len(each.numbers))
        left = {name: _left(model, processor, questions, read, name, budget, batch, found.sinks) for name in pruners}
    truths = [question.answer for question in questions]
    told = None if shown is None else torch.stack([shown(question.picture) for question in questions])
    sinks = torch.stack([found.sinks[number] for number in range(len(questions))])
    return SinkReport(
        len(questions),
        float(sinks.float().mean()),
        (found.in_layer / found.visual).tolist(),
        float(found.massive / found.visual),
        found.largest_ratio,
        float(found.drawn / found.attention),
        (_mean(found.similar[0], found.sink_places), _mean(found.similar[1], found.other_places)),
        None if told is None else float(told.float().mean()),
        None if told is None or not bool(sinks.any()) else float(told[sinks].float().mean()),
        {name: accuracy(exact_matches(said, truths)) for name, said in answers.items()},
        left,
    )


def _mean(total: float, count: int) -> float | None:
    return total / count if count else None


class _Found:
    """Sums over batches; sinks: question -> [N] bool."""

    def __init__(self) -> None:
        self.sinks: dict[int, Tensor] = {}
        self.visual, self.massive, self.largest_ratio = 0, 0.0, 0.0
        self.attention, self.drawn = 0.0, 0.0
        self.similar, self.sink_places, self.other_places = [0.0, 0.0], 0, 0
        self.in_layer = torch.zeros(0)

    def add(self, numbers: Sequence[int], states: TokenStates, factor: float) -> Tensor:
        """The sinks of a batch, [B, N] bool."""
        visual, layers = states.visual, states.sinks(factor)
        own = layers[:, visual].unflatten(1, (len(numbers), -1))
        sinks: Tensor = own.any(0)
        self.sinks |= dict(zip(numbers, sinks, strict=True))
        self.visual += int(visual.sum())
        counts = own.flatten(1).sum(1).float()
        self.in_layer = counts if not len(self.in_layer) else self.in_layer + counts
        self.massive += float(states.massive()[:, visual].any(0).sum())
        self.largest_ratio = max(self.largest_ratio, states.largest_ratio)
        here, similarity = own.flatten(1), states.similarity[:, visual]
        attention = states.attention[:, visual]
        self.attention += float(attention.sum())
        self.drawn += float(attention[here].sum())
        self.similar[0] += float(similarity[here].sum())
        self.similar[1] += float(similarity[~here].sum())
        self.sink_places += int(here.sum())
        self.other_places += int((~here).sum())
        return sinks


def _masks(sinks: Tensor, draw: torch.Generator) -> dict[str, Tensor]:
    """What each setting keeps, [B, N] bool; random ones are as many as the picture has sinks."""
    ranks = torch.rand(sinks.shape, generator=draw).argsort(1).argsort(1).to(sinks.device)
    random = ranks < sinks.sum(1, keepdim=True)
    everything = torch.ones_like(sinks)
    return {ALL: everything, NO_SINKS: ~sinks, NO_RANDOM: ~random, SINKS_ONLY: sinks, RANDOM_ONLY: random}


def _cut(model: Any, inputs: Mapping[str, Any], keep: Tensor) -> dict[str, Any]:
    return prune_inputs(model, ByMask(), inputs, budget=1.0, keep=keep)


def _left(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read,
    name: str,
    budget: float,
    batch: int,
    sinks: Mapping[int, Tensor],
) -> KeptSinks:
    """Which visual tokens a pruner leaves behind the last layer, over all questions."""
    pruner: Any = create("pruner", name)
    kept = total = kept_sinks = all_sinks = 0
    generator = torch.Generator().manual_seed(0)
    with prune(model, pruner, budget=budget, generator=generator) as handle:
        for each in batches(model, processor, questions, read, batch=batch, pixels=reads_tower(pruner)):
            model(**each.inputs, use_cache=True)
            own = torch.stack([sinks[number] for number in each.numbers])
            visual = each.inputs["input_ids"] == processor.image_token_id
            left = handle.kept[visual].unflatten(0, own.shape)
            kept, total = kept + int(left.sum()), total + left.numel()
            kept_sinks, all_sinks = kept_sinks + int((left & own).sum()), all_sinks + int(own.sum())
    return KeptSinks(kept / total, kept_sinks / all_sinks if all_sinks else None)
