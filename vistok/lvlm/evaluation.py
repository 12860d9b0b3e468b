"""How many questions a vision-language model answers, by kind, beside what needs no picture to be answered."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from vistok.lvlm.ablation import BUDGETS, RULES, Foreground, ablate, setting_name
from vistok.lvlm.answer import answer_questions
from vistok.lvlm.context import reads_tower
from vistok.lvlm.prompting import GREY_LEVEL, Read, VisualQuestion, as_picture
from vistok.lvlm.prune import Named, Pruning, prune
from vistok.metrics.accuracy import (
    Accuracy,
    PairedDifference,
    accuracy,
    accuracy_by_kind,
    constant_answers,
    exact_matches,
    paired_difference,
)
from vistok.protocols import Budget
from vistok.registry import create

OnBatch = Callable[[int], None]

BLIND = "blind"  # the setting of constant answers


@dataclass(frozen=True)
class Scores:
    """Accuracy with its Wilson 95 % interval; blind: of the best constant answer of each kind; grey: of the same model,
    unpruned, shown a plain grey."""

    accuracy: float
    interval: tuple[float, float]
    questions: int
    blind: float
    grey: float


@dataclass(frozen=True)
class Evaluation:
    """Scores over all questions and of each kind; answers and right in the order of the questions.

    visual_tokens: per layer of the language model on average, in the latest batch; None where nothing was pruned.
    """

    overall: Scores
    kinds: dict[str, Scores]
    answers: list[str]
    right: list[bool]
    visual_tokens: float | None = None


@dataclass(frozen=True)
class Ablation:
    """By name of the setting, and BLIND: accuracy over all questions and by kind; differences: of a rule to "random" at
    the same budget, on the same questions."""

    overall: dict[str, Accuracy]
    kinds: dict[str, dict[str, Accuracy]]
    differences: dict[str, PairedDifference]


def best_constants(questions: Sequence[VisualQuestion]) -> dict[str, str]:
    """The answer of each kind that is right most often: what to say without looking."""
    return constant_answers([q.kind for q in questions], [q.answer for q in questions])


def evaluate(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read = as_picture,
    *,
    constants: Mapping[str, str],
    pruner: Named | None = None,
    budget: Budget | None = None,
    batch: int = 32,
    max_new_tokens: int = 8,
    on_batch: OnBatch | None = None,
) -> Evaluation:
    """Exact match of the model's answers, and of the baselines'.

    constants: of `best_constants`, over other questions than these where there are any. pruner, budget: as `prune`
    takes them; a pruner that draws does so from seed 0. on_batch: told the questions answered since the last call, of
    twice as many as there are, for the model and for the grey picture. Raises: ValueError if there are no questions.
    """
    if not questions:
        raise ValueError("evaluate: expected at least one question, got none")
    chosen = create("pruner", pruner) if isinstance(pruner, str) else pruner
    asking: dict[str, Any] = {"batch": batch, "max_new_tokens": max_new_tokens, "on_batch": on_batch}
    generator = torch.Generator().manual_seed(0)
    pruned = nullcontext() if chosen is None else prune(model, chosen, budget=budget, generator=generator)
    with pruned as handle:
        answers = answer_questions(model, processor, questions, read, pixels=reads_tower(chosen), **asking)
        tokens = handle.report().mean_visual if isinstance(handle, Pruning) else None
    grey = Image.new("RGB", read(questions[0].picture).size, GREY_LEVEL)
    without = [replace(question, picture=0) for question in questions]
    to_grey = answer_questions(model, processor, without, lambda _: grey, **asking)
    right, constant, unseen = (
        _matches(questions, said) for said in (answers, _said_blind(constants, questions), to_grey)
    )
    overall = _scores(*(accuracy(hits) for hits in (right, constant, unseen)))
    own, blind, seen_grey = (_by_kind(questions, hits) for hits in (right, constant, unseen))
    kinds = {kind: _scores(own[kind], blind[kind], seen_grey[kind]) for kind in own}
    return Evaluation(overall, kinds, answers, right, tokens)


def evaluate_ablations(
    model: Any,
    processor: Any,
    questions: Sequence[VisualQuestion],
    read: Read,
    foreground: Foreground,
    *,
    constants: Mapping[str, str],
    budgets: Sequence[float] = BUDGETS,
    batch: int = 32,
    max_new_tokens: int = 8,
    on_batch: OnBatch | None = None,
) -> Ablation:
    """Exact match under every setting of `ablate`, whose arguments these are; constants: as in `evaluate`."""
    answers = ablate(
        *(model, processor, questions, read, foreground),
        budgets=budgets,
        batch=batch,
        max_new_tokens=max_new_tokens,
        on_batch=on_batch,
    )
    right = {name: _matches(questions, said) for name, said in answers.items()}
    right[BLIND] = _matches(questions, _said_blind(constants, questions))
    differences = {
        setting_name(rule, budget): paired_difference(
            right[setting_name("random", budget)], right[setting_name(rule, budget)]
        )
        for rule in RULES
        if rule != "random"
        for budget in budgets
    }
    overall = {name: accuracy(hits) for name, hits in right.items()}
    return Ablation(overall, {name: _by_kind(questions, hits) for name, hits in right.items()}, differences)


def _said_blind(constants: Mapping[str, str], questions: Sequence[VisualQuestion]) -> list[str]:
    return [constants.get(question.kind, "") for question in questions]


def _matches(questions: Sequence[VisualQuestion], answers: Sequence[str]) -> list[bool]:
    return exact_matches(answers, [question.answer for question in questions])


def _by_kind(questions: Sequence[VisualQuestion], right: Sequence[bool]) -> dict[str, Accuracy]:
    return accuracy_by_kind([question.kind for question in questions], right)


def _scores(own: Accuracy, blind: Accuracy, grey: Accuracy) -> Scores:
    return Scores(own.accuracy, own.interval, own.questions, blind.accuracy, grey.accuracy)
