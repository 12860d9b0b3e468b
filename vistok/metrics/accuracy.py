"""Exact-match accuracy with intervals: one model, by kind of question, and two models on the same questions."""

import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import comb, sqrt
from statistics import NormalDist

_Z = NormalDist().inv_cdf(0.975)
_MARKS = string.punctuation + "“”‘’„…。，"


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers, its Wilson 95 % interval, and of how many questions."""

    accuracy: float
    interval: tuple[float, float]
    questions: int


@dataclass(frozen=True)
class PairedDifference:
    """Accuracy of a second method less that of a first, on the same questions.

    interval: 95 %, Agresti and Min 2005 (half an observation added to each of the four cells). p_value: exact McNemar
    test, two-sided.
    """

    difference: float
    interval: tuple[float, float]
    p_value: float


def normalized(answer: str) -> str:
    """Lower case, one space between words, no punctuation around them: "  Left." and "left" are the same answer."""
    words = (word.strip(_MARKS) for word in unicodedata.normalize("NFKC", answer).casefold().split())
    return " ".join(word for word in words if word)


def exact_matches(answers: Sequence[str], truths: Sequence[str]) -> list[bool]:
    """Whether each answer is the true one, both normalized."""
    return [normalized(answer) == normalized(truth) for answer, truth in zip(answers, truths, strict=True)]


def wilson_interval(right: int, questions: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson 1927). Raises: ValueError unless 0 <= right <= questions, 1 <= questions."""
    if not 0 <= right <= questions or questions < 1:
        raise ValueError(f"expected 0 <= right <= questions with at least one question, got {right} of {questions}")
    share, square = right / questions, _Z * _Z
    centre = share + square / (2 * questions)
    reach = _Z * sqrt(share * (1 - share) / questions + square / (4 * questions * questions))
    scale = 1 + square / questions
    # Exactly 0 and 1 at the ends, where rounding may fall to either side.
    low = 0.0 if right == 0 else (centre - reach) / scale
    return low, 1.0 if right == questions else (centre + reach) / scale


def accuracy(right: Sequence[bool]) -> Accuracy:
    """Accuracy over questions. Raises: ValueError if there are none."""
    hits = sum(right)
    interval = wilson_interval(hits, len(right))
    return Accuracy(hits / len(right), interval, len(right))


def accuracy_by_kind(kinds: Sequence[str], right: Sequence[bool]) -> dict[str, Accuracy]:
    """Accuracy of the questions of each kind, kinds in the order of their first question."""
    found: dict[str, list[bool]] = {}
    for kind, hit in zip(kinds, right, strict=True):
        found.setdefault(kind, []).append(hit)
    return {kind: accuracy(hits) for kind, hits in found.items()}


def constant_answers(kinds: Iterable[str], truths: Iterable[str]) -> dict[str, str]:
    """The answer of each kind that is right most often, of equally frequent ones the first: the blind baseline."""
    found: dict[str, Counter[str]] = {}
    for kind, truth in zip(kinds, truths, strict=True):
        found.setdefault(kind, Counter())[normalized(truth)] += 1
    return {kind: counts.most_common(1)[0][0] for kind, counts in found.items()}


def paired_difference(first: Sequence[bool], second: Sequence[bool]) -> PairedDifference:
    """How much more often `second` is right than `first`; entry i of both is about question i.

    Raises: ValueError if they differ in length or are empty.
    """
    if len(first) != len(second) or not first:
        raise ValueError(f"expected the same questions twice, at least one, got {len(first)} and {len(second)}")
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    total = len(first) + 2
    middle = (won - lost) / total
    reach = _Z * sqrt((won + lost + 1 - (won - lost) ** 2 / total) / (total * total))
    interval = (max(-1.0, middle - reach), min(1.0, middle + reach))
    return PairedDifference((won - lost) / len(first), interval, _mcnemar(won, lost))


def _mcnemar(won: int, lost: int) -> float:
    discordant = won + lost
    tail = sum(comb(discordant, count) for count in range(min(won, lost) + 1))
    both: int = 2**discordant
    return min(1.0, 2 * tail / both)
