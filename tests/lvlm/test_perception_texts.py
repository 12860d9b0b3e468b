"""Texts by what they are about: their families, and a mistake in the name."""

import numpy as np
import pytest

from vistok.lvlm.perception_texts import perception_texts


@pytest.mark.parametrize(("asks", "family"), [("depths", "depth"), ("counts", "cells")])
def test_answers_have_as_many_words_as_said_and_made_up_questions_as_many_spans(asks, family):
    texts = perception_texts(asks, 12)
    assert texts.family.name == family and len(texts.family.codes) == 12
    for points in texts.made_up_points:
        for question in texts.made_up(np.random.default_rng(0), 5, points):
            assert question.points == points and len(question.answer.split()) == texts.answer_words
            assert question.chain.endswith(question.conclusion) and question.conclusion.endswith(question.answer)
            assert question.chain.count(texts.family.begin[0]) == points and question.read(question.codes) is not None


def test_other_things_to_ask_are_refused():
    with pytest.raises(ValueError, match="asks: expected depths or counts, got 'areas'"):
        perception_texts("areas", 12)
