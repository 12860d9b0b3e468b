"""What a model's answers owe to its visual tokens: fewer of them by simple rules, those of another picture, grey.

The tower runs once a picture; tokens are cut at the language model's input and keep their positions. N visual tokens of
a picture, in rows x cols.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vistok.lvlm.answer import speak
from vistok.lvlm.family import family_of
from vistok.lvlm.inputs import prune_inputs, with_features
from vistok.lvlm.prompting import GREY_LEVEL, Batch, Read, VisualQuestion, batches, encode_pictures, takes_features
from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.tokens import Selection, TokenTensor

Foreground = Callable[[Any, tuple[int, int]], NDArray[np.float64]]

BUDGETS = (0.5, 0.25, 0.1)
ALL, OTHER, GREY = "all", "other picture", "grey picture"


@dataclass(frozen=True, eq=False)
class Asked:
    """What a rule may look at: the number of the question, features [N, D], foreground [N], grid (rows, cols)."""

    number: int
    features: Tensor
    foreground: Tensor
    grid: tuple[int, int]


class ByScores:
    """Keeps the tokens with the highest scores, the context [M, N]; of equal ones the first."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"scores"})

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection:
        """Slots [M, K] ascending."""
        scores: Tensor = context["scores"]
        slots, counts = kept_tokens(tokens, budget)
        ranks = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return as_selection(tokens, best_slots(ranks, slots, counts), counts, budget)


def random_scores(asked: Asked) -> Tensor:
    """A draw of its own for each question; fewer tokens are a subset of more."""
    return torch.rand(len(asked.features), generator=torch.Generator().manual_seed(asked.number))


def grid_scores(asked: Asked) -> Tensor:
    """Evenly spread over rows and columns: the order of ordered dithering (Bayer 1973)."""
    order = torch.zeros(1, 1)
    while len(order) < max(asked.grid):
        order = torch.cat([torch.cat([4 * order, 4 * order + 2], 1), torch.cat([4 * order + 3, 4 * order + 1], 1)])
    return -order[: asked.grid[0], : asked.grid[1]].flatten()


def oracle_scores(asked: Asked) -> Tensor:
    """What shows things, each thing in turn, then what is nearest to them."""
    return asked.foreground


def high_norm_scores(asked: Asked) -> Tensor:
    """The largest features first."""
    norms: Tensor = torch.linalg.vector_norm(asked.features.float(), dim=-1)
    return norms


def low_norm_scores(asked: Asked) -> Tensor:
    """The smallest features first."""
    return -high_norm_scores(asked)


RULES: dict[str, Callable[[Asked], Tensor]] = {
    "random": random_scores,
    "grid": grid_scores,
    "oracle": oracle_scores,
    "high norm": high_norm_scores,
    "low norm": low_norm_scores,
}


def settings(budgets: Sequence[float] = BUDGETS) -> list[str]:
    """Names of all settings, in the order of a table."""
    return [ALL, *(setting_name(rule, budget) for rule in RULES for budget in budgets), OTHER, GREY]


def ablate(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read,
    foreground: Foreground,
    *,
    budgets: Sequence[float] = BUDGETS,
    batch: int = 32,
    max_new_tokens: int = 8,
    on_batch: Callable[[int], None] | None = None,
) -> dict[str, list[str]]:
    """The model's answers to every question under each of `settings(budgets)`, in the order of the questions.

    foreground: (picture, grid) -> [rows, cols], what the oracle keeps first. "other picture" puts in the tokens of
    another question's picture, drawn at random among questions of that length; "grey picture" those of a plain grey.
    Raises: ValueError if the model does not take features, its tokens are no square grid, or there are not two
    questions a batch, each about a picture of its own.
    """
    if not takes_features(model):
        raise ValueError(f"ablate: expected a model of the LLaVA family, got {type(model).__name__}")
    if min(batch, len(questions)) < 2 or len({question.picture for question in questions}) < len(questions):
        raise ValueError("ablate: expected two questions a batch or more, each about a picture of its own, to exchange")
    answers = {name: [""] * len(questions) for name in settings(budgets)}
    with torch.inference_mode():
        grey = encode_pictures(model, processor, [Image.new("RGB", read(questions[0].picture).size, GREY_LEVEL)])[0]
        for each, other in _with_other(batches(model, processor, questions, read, batch=batch)):
            variants = dict(_cut(model, each, questions, foreground, budgets))
            variants |= {ALL: each.inputs, OTHER: _given(model, each, other)}
            variants[GREY] = _given(model, each, [grey] * len(each.numbers))
            for name, inputs in variants.items():
                for number, words in zip(each.numbers, speak(model, processor, inputs, max_new_tokens), strict=True):
                    answers[name][number] = words
            if on_batch is not None:
                on_batch(len(each.numbers))
    return answers


def _cut(
    model: Any, batch: Batch, questions: Sequence[VisualQuestion], foreground: Foreground, budgets: Sequence[float]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    grid = _square(batch.features)
    asked = []
    for number, features in zip(batch.numbers, batch.features, strict=True):
        shown = torch.from_numpy(foreground(questions[number].picture, grid).flatten())
        asked.append(Asked(number, features, shown, grid))
    for rule, scores_of in RULES.items():
        scores = torch.stack([scores_of(each).to(model.device) for each in asked])
        for budget in budgets:
            yield (
                setting_name(rule, budget),
                prune_inputs(model, ByScores(), batch.inputs, budget=budget, scores=scores),
            )


def _given(model: Any, batch: Batch, features: list[Tensor]) -> dict[str, Any]:
    """The same prompts with other features of the same number."""
    return with_features(batch.inputs, family_of(model), {"image": features})


def _with_other(given: Iterator[Batch]) -> Iterator[tuple[Batch, list[Tensor]]]:
    """Every batch with features of another picture for each question: those of the question before it."""
    before: Tensor | None = None
    for batch in given:
        last = batch.features[-1] if before is None else before
        yield batch, [last, *batch.features[:-1]]
        before = batch.features[-1]


def _square(features: Sequence[Tensor]) -> tuple[int, int]:
    counts = {len(own) for own in features}
    side = isqrt(max(counts))
    if counts != {side * side}:
        raise ValueError(f"ablate: expected visual tokens in a square grid, got {sorted(counts)} of them")
    return side, side


def setting_name(rule: str, budget: float) -> str:
    """For example "oracle 25%"."""
    return f"{rule} {budget:.0%}"
