from collections import Counter

import pytest

from vistok.data.scenes import KINDS, make_layout, questions_about, seeds_of
from vistok.data.scenes.balance import BalancedChoice
from vistok.data.scenes.questions import ANSWERS

LAYOUTS = [make_layout(seed) for seed in seeds_of("validation")[:500]]


def test_kinds_and_answers_are_balanced_over_many_scenes():
    choice = BalancedChoice()
    questions = [question for layout in LAYOUTS for question in choice.choose(layout, 4)]
    assert len(questions) == 4 * len(LAYOUTS)
    assert Counter((question.kind, question.answer) for question in questions) == choice.asked
    kinds = Counter(question.kind for question in questions)
    # Only a quarter of the scenes have a farthest thing that is clear of the next.
    offered = sum(any(question.kind == "farthest" for question in questions_about(layout)) for layout in LAYOUTS)
    fair = len(questions) / len(KINDS)
    assert kinds["farthest"] >= 0.9 * min(offered, fair)
    assert all(0.97 * fair <= times <= 1.06 * fair for kind, times in kinds.items() if kind != "farthest"), kinds
    for kind in set(KINDS) - {"farthest"}:
        even = kinds[kind] / len(ANSWERS[kind])
        assert all(abs(choice.asked[kind, answer] - even) <= max(2, 0.15 * even) for answer in ANSWERS[kind]), kind


def test_questions_of_a_scene_differ_and_are_among_its_own():
    choice = BalancedChoice()
    for layout in LAYOUTS[:60]:
        chosen = choice.choose(layout, 16)
        assert len({question.text for question in chosen}) == len(chosen) == 16
        assert set(chosen) <= set(questions_about(layout))
        assert [KINDS.index(question.kind) for question in chosen] == sorted(KINDS.index(q.kind) for q in chosen)


def test_a_scene_with_fewer_questions_gives_all_it_has():
    for layout in LAYOUTS[:20]:
        everything = questions_about(layout)
        assert Counter(BalancedChoice().choose(layout, len(everything) + 5)) == Counter(everything)


@pytest.mark.parametrize("wanted", [1, 4])
def test_the_same_scenes_in_the_same_order_give_the_same_questions(wanted):
    first, second = BalancedChoice(), BalancedChoice()
    for layout in LAYOUTS[:40]:
        assert first.choose(layout, wanted) == second.choose(layout, wanted)
