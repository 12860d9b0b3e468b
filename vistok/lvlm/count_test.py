"""Does a model count from the places that it lists? Its own list, and others put in its place.

"Ablate-to-Validate" (Zhang, Bigverdi, Krishna) replaces codes and leaves their number. Here the number of spans is what
counts, so lists are put in the model's mouth as a whole, with their end, and it only says the number.
"""

from collections.abc import Sequence

import numpy as np

from vistok.lvlm.count_questions import CountTexts
from vistok.lvlm.perception_model import PerceptionModel
from vistok.lvlm.perception_texts import PerceptionQuestion
from vistok.lvlm.replacement_test import OWN, Said, SceneAnswers
from vistok.lvlm.span_rules import depth_rule

LISTS = ("oracle", "random_places", "random_number")
_MOST_SPANS, _SPAN, _END, _ANSWER = 8, 4, 1, 2  # no scene has more things; tokens of a span, of the end, of the answer
_MOST_ASKED = 4  # of a question, so random numbers are from as many


def count_test(
    host: PerceptionModel,
    questions: Sequence[PerceptionQuestion],
    lists: Sequence[str] = LISTS,
    *,
    batch: int = 48,
    seed: int = 0,
) -> dict[str, list[Said]]:
    """Answers by list, that of the model's own (`OWN`) first; `codes` are those of the list.

    "oracle": the true places; "random_places": as many as the model listed, anywhere; "random_number": 0 to 4 of them.
    Raises: ValueError for another list.
    """
    unknown = [name for name in lists if name not in LISTS]
    if unknown:
        raise ValueError(f"count test: expected lists among {', '.join(LISTS)}, got {', '.join(unknown)}")
    answers, texts = SceneAnswers(host, questions, batch), CountTexts(host.attachment.families[0])
    rule = depth_rule(answers.vocabulary, 2, max_spans=_MOST_SPANS)
    found = {OWN: answers.written(_MOST_SPANS * _SPAN + _END + _ANSWER, rule, required=False)}
    for name in lists:
        rng = np.random.default_rng((seed, LISTS.index(name)))
        cells = []
        for question, own in zip(questions, found[OWN], strict=True):
            if name == "oracle":
                cells.append(_pairs(question.codes))
                continue
            spans = len(own.codes) // 2 if name == "random_places" else int(rng.integers(_MOST_ASKED + 1))
            cells.append(sorted(_pairs(rng.integers(len(texts.family.codes), size=2 * spans).tolist())))
        said = answers.written(_ANSWER, begun=[texts.listed(places) for places in cells])
        found[name] = [
            Said(f"{texts.listed(places)} {one.text}", one.answer, tuple(code for cell in places for code in cell))
            for places, one in zip(cells, said, strict=True)
        ]
    return found


def _pairs(codes: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(codes[::2], codes[1::2], strict=True))
