"""Several questions for each of many scenes, kinds and answers as balanced over all of them as the scenes allow."""

from collections import Counter

import numpy as np

from vistok.data.scenes.layout import Layout
from vistok.data.scenes.questions import ANSWERS, KINDS, Question, questions_about

# A kind that is behind counts for more than an answer that is: kinds are what a score is averaged over, and an answer
# that few scenes offer (four red things) must not hold its whole kind back.
_KIND_WEIGHT = 4
_QUESTION_STREAM = 4


class BalancedChoice:
    """Picks for each scene what has been asked least so far; the same scenes in the same order give the same questions.

    asked: how often each (kind, answer) was picked.
    """

    def __init__(self) -> None:
        self.asked: Counter[tuple[str, str]] = Counter()
        self._of_kind: Counter[str] = Counter()

    def choose(self, layout: Layout, wanted: int) -> list[Question]:
        """`wanted` different questions about a scene, or all there are, in the order of KINDS."""
        rng = np.random.default_rng((layout.seed, _QUESTION_STREAM))
        offered: dict[tuple[str, str], list[Question]] = {}
        for question in questions_about(layout):
            offered.setdefault((question.kind, question.answer), []).append(question)
        lots = {pair: rng.random() for pair in offered}
        chosen: list[Question] = []
        while offered and len(chosen) < wanted:
            pair = min(offered, key=lambda pair: (self._share(*pair), lots[pair]))
            chosen.append(offered[pair].pop(int(rng.integers(len(offered[pair])))))
            if not offered[pair]:
                del offered[pair]
            self.asked[pair] += 1
            self._of_kind[pair[0]] += 1
        return sorted(chosen, key=lambda question: KINDS.index(question.kind))

    def _share(self, kind: str, answer: str) -> int:
        """How much of its share a kind and an answer have had: equal for all in a balanced file."""
        return _KIND_WEIGHT * self._of_kind[kind] + len(ANSWERS[kind]) * self.asked[kind, answer]
