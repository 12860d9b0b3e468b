"""Scores of a model and of what needs no picture, with pruners in between, and of the ablations."""

from dataclasses import replace
from typing import Any

import pytest
from PIL import Image

from vistok.data.scenes import KINDS
from vistok.lvlm.answer import answer_questions
from vistok.lvlm.evaluation import best_constants, evaluate, evaluate_ablations
from vistok.lvlm.prompting import VisualQuestion
from vistok.lvlm.prune import prune
from vistok.lvlm.scene_questions import scene_foreground, scene_picture, scene_questions, scene_side
from vistok.metrics.accuracy import wilson_interval
from vistok.registry import create

from .micro_fixtures import tiny_micro

READ = scene_picture(64)
NEVER_RIGHT = dict.fromkeys(KINDS, "purple")


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


@pytest.fixture(scope="module")
def asked(host: tuple[Any, Any]) -> list[VisualQuestion]:
    """Thirty questions whose true answer is, for every third, what the model says."""
    questions = scene_questions("test", 30)
    said = answer_questions(*host, questions, READ, max_new_tokens=2)
    return [replace(q, answer=said[i].upper() + "." if i % 3 == 0 else q.answer) for i, q in enumerate(questions)]


def test_scores_are_shares_of_right_answers_over_all_questions_and_by_kind(host: Any, asked: Any) -> None:
    told: list[int] = []
    found = evaluate(*host, asked, READ, constants=NEVER_RIGHT, max_new_tokens=2, on_batch=told.append)
    assert all(found.right[::3]) and sum(told) == 60
    assert found.overall.accuracy == sum(found.right) / 30 and found.overall.questions == 30
    assert found.overall.interval == wilson_interval(sum(found.right), 30)
    for kind, scores in found.kinds.items():
        hits = [hit for question, hit in zip(asked, found.right, strict=True) if question.kind == kind]
        assert (scores.accuracy, scores.questions) == (sum(hits) / len(hits), len(hits))
    assert list(found.kinds) == list(dict.fromkeys(question.kind for question in asked))
    assert found.overall.blind == 0 and found.visual_tokens is None


def test_baselines_are_the_constant_answer_and_the_model_before_a_grey_picture(host: Any) -> None:
    questions = scene_questions("test", 28)
    constants = best_constants(scene_questions("validation", 28))
    assert (constants["exist"], constants["horizontal"]) == ("yes", "left")
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    said = answer_questions(*host, questions, lambda _: grey, max_new_tokens=2)
    told_grey = [replace(question, answer=words) for question, words in zip(questions, said, strict=True)]
    found = evaluate(*host, told_grey, READ, constants=constants, max_new_tokens=2)
    assert found.overall.grey == 1.0 > found.overall.accuracy
    blind = evaluate(*host, questions, READ, constants=constants, max_new_tokens=2)
    assert blind.kinds["exist"].blind == 0.5 and 0 < blind.overall.blind < 1


@pytest.mark.parametrize(
    ("pruner", "budget", "tokens"), [("k_center", 9, 9.0), ("random", 0.25, 9.0), ("uniform", 1.0, 36.0)]
)
def test_a_pruner_takes_tokens_from_the_model_and_not_from_the_grey_baseline(
    host: Any, asked: Any, pruner: str, budget: int | float, tokens: float
) -> None:
    plain = evaluate(*host, asked, READ, constants={}, max_new_tokens=2)
    found = evaluate(*host, asked, READ, constants={}, pruner=pruner, budget=budget, max_new_tokens=2)
    assert found.visual_tokens == tokens and found.overall.grey == plain.overall.grey
    assert (found.answers == plain.answers) == (tokens == 36)
    if pruner == "k_center":
        with prune(host[0], "k_center", budget=9):
            assert found.answers == answer_questions(*host, asked, READ, batch=3, max_new_tokens=2)
    assert evaluate(*host, asked, READ, constants={}, pruner=pruner, budget=budget, max_new_tokens=2) == found


def test_a_pruner_between_layers_has_a_schedule_of_its_own(host: Any, asked: Any) -> None:
    settings = {"observe": [0, 1, 2], "prune_after": [0, 1, 2], "ratios": [0.75, 0.5, 0.25]}
    found = evaluate(*host, asked[:6], READ, constants={}, pruner=create("pruner", "transprune", **settings))
    assert found.visual_tokens == pytest.approx((36 + 27 + 18 + 5 * 9) / 8)


def test_ablations_are_scored_by_setting_and_compared_with_random_tokens(host: Any, asked: Any) -> None:
    found = evaluate_ablations(
        *host, asked, READ, scene_foreground(64), constants=NEVER_RIGHT, budgets=(0.25,), max_new_tokens=2
    )
    plain = evaluate(*host, asked, READ, constants={}, max_new_tokens=2)
    assert found.overall["all"].accuracy == plain.overall.accuracy
    assert found.overall["grey picture"].accuracy == plain.overall.grey
    assert list(found.differences) == ["grid 25%", "oracle 25%", "high norm 25%", "low norm 25%"]
    for name, difference in found.differences.items():
        gap = found.overall[name].accuracy - found.overall["random 25%"].accuracy
        assert difference.difference == pytest.approx(gap)
    assert set(found.kinds["all"]) == set(plain.kinds) and found.overall["blind"].accuracy == 0


def test_scenes_are_rendered_at_the_size_that_the_processor_wants() -> None:
    _, processor = tiny_micro()
    assert scene_side(processor) == 64
    processor.image_processor.crop_size = type(processor.image_processor.size)(height=128, width=128)
    assert scene_side(processor) == 64, "a crop size counts where pictures are cropped"
    processor.image_processor.do_center_crop = True
    assert scene_side(processor) == 128
    processor.image_processor.do_center_crop = False
    for size, side in (({"shortest_edge": 224}, 224), ({"height": 1000, "width": 1000}, 336)):
        processor.image_processor.size = type(processor.image_processor.size)(**size)
        assert scene_side(processor) == side


def test_no_questions_are_an_error(host: Any) -> None:
    with pytest.raises(ValueError, match="at least one question"):
        evaluate(*host, [], READ, constants={})
