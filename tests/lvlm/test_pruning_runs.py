"""Answers under a method are those of the model with that method, asked for once, and refused under other settings."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import vistok
from vistok.lvlm.answer import answer_questions
from vistok.lvlm.prompting import VisualQuestion
from vistok.lvlm.prune import prune
from vistok.lvlm.pruning_methods import Method, find_method
from vistok.lvlm.pruning_runs import Asking, Refused, choose
from vistok.lvlm.scene_questions import scene_picture, scene_questions

from .micro_fixtures import tiny_micro

READ = scene_picture(64)


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


@pytest.fixture
def asking(host: tuple[Any, Any], tmp_path: Path) -> Asking:
    return Asking("tiny", *host, scene_questions("test", 10), READ, tmp_path, 4, 2)


@pytest.mark.parametrize("name", ["k_center", "random", "pool", "todre"])
def test_answers_are_those_of_the_model_inside_prune(asking: Asking, name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    with prune(asking.model, vistok.pruner(name), budget=0.25, generator=generator):
        expected = answer_questions(
            *(asking.model, asking.processor, asking.questions, READ), batch=4, max_new_tokens=2, pixels=name == "todre"
        )
    run = asking.run(find_method(name), 0.25)
    assert run.answers == expected
    whole = asking.run(None)
    assert whole.visual_tokens == 36 and run.visual_tokens <= 9 and run.flops["exact"] < whole.flops["exact"]
    assert whole.answers == answer_questions(
        *(asking.model, asking.processor, asking.questions, READ), batch=4, max_new_tokens=2
    )


def test_a_pruner_inside_the_decoder_keeps_the_share_in_the_mean_over_layers(asking: Asking) -> None:
    early = Method("early", "transprune", {"observe": [0, 1], "prune_after": [0], "ratios": [0.5]})
    run = asking.run(early, 0.5)
    assert run.visual_tokens == pytest.approx(18, abs=0.5)


def test_two_pruners_share_one_budget(asking: Asking) -> None:
    early: dict[str, Any] = {"observe": [0], "prune_after": [0], "ratios": [0.5]}
    run = asking.run(Method("both", "transprune", early | {"input": {"base": "k_center", "factor": 2}}), 0.25)
    both = [vistok.pruner("k_center"), vistok.pruner("transprune", **early)]
    with prune(asking.model, both, budget=[0.5, 0.5]):
        expected = answer_questions(asking.model, asking.processor, asking.questions, READ, batch=4, max_new_tokens=2)
    assert run.answers == expected and run.visual_tokens == pytest.approx(9, abs=1)


def test_downsampling_shows_a_smaller_picture_and_keeps_as_many_tokens(asking: Asking) -> None:
    seen: list[Image.Image] = []

    def read(seed: Any) -> Image.Image:
        seen.append(READ(seed))
        return seen[-1]

    whole = asking.run(None)
    run = replace(asking, read=read).run(find_method("downsample"), 0.25)
    assert run.visual_tokens == 9 and run.flops == asking.run(find_method("uniform"), 0.25).flops
    assert len(seen) == 10 and run.answers != whole.answers


def test_answers_that_are_there_are_not_asked_for_again(asking: Asking) -> None:
    first = asking.run(find_method("pool"), 0.25)
    (file,) = asking.folder.iterdir()
    assert file.name == "pool_0.25.json"
    content = file.read_bytes()

    def read(picture: Any) -> Image.Image:
        raise AssertionError("asked again")

    told: list[int] = []
    again = replace(asking, read=read).run(find_method("pool"), 0.25, on_batch=told.append)
    assert again == first and sum(told) == 10
    file.unlink()
    asking.run(find_method("pool"), 0.25)
    assert file.read_bytes() == content


def test_a_run_that_breaks_leaves_no_file(asking: Asking) -> None:
    def read(picture: Any) -> Image.Image:
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        replace(asking, read=read).run(find_method("pool"), 0.25)
    assert list(asking.folder.iterdir()) == []


def test_answers_of_other_settings_are_refused_by_name(asking: Asking) -> None:
    pool = find_method("pool")
    asking.run(pool, 0.25)
    others = [
        (replace(asking, batch=5), pool, "batch 5, got those with 4"),
        (replace(asking, max_new_tokens=3), pool, "words 3, got those with 2"),
        (replace(asking, questions=asking.questions[:9]), pool, "questions 9, got those with 10"),
        (replace(asking, questions=asking.questions[::-1]), pool, "questions_sha256"),
        (replace(asking, name="other"), pool, "model other, got those with tiny"),
        (asking, Method("pool", "todre"), "pruner .*todre.*, got those with .*pool"),
    ]
    for other, method, message in others:
        with pytest.raises(ValueError, match=rf"pool_0.25.json: expected answers with {message}.*another --out"):
            other.run(method, 0.25)


def test_answers_of_a_model_that_was_trained_on_are_refused(asking: Asking) -> None:
    asking.run(None)
    model, processor = tiny_micro()
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
    with pytest.raises(ValueError, match="expected answers with weights"):
        Asking("tiny", model, processor, asking.questions, READ, asking.folder, 4, 2).run(None)


@pytest.mark.parametrize("content", ["{", "[]", json.dumps({"settings": {}})])
def test_a_file_of_something_else_is_refused(asking: Asking, content: str) -> None:
    (asking.folder / "unpruned.json").write_text(content)
    with pytest.raises(ValueError, match="unpruned.json: expected answers of this command"):
        asking.run(None)


def test_what_a_method_cannot_do_it_says_and_what_the_model_cannot_is_an_error(asking: Asking) -> None:
    with pytest.raises(Refused, match="relative depth"):
        asking.run(find_method("transprune"), 0.5)
    nowhere = replace(asking, questions=[VisualQuestion(0, "what ?")], processor=no_template(asking.processor))
    with pytest.raises(ValueError, match="chat template") as caught:
        nowhere.run(None)
    assert not isinstance(caught.value, Refused)


def no_template(processor: Any) -> Any:
    class Mute:
        image_processor, tokenizer, image_token = processor.image_processor, processor.tokenizer, processor.image_token

        def apply_chat_template(self, *args: Any, **options: Any) -> str:
            return "nothing to see"

    return Mute()


def test_the_candidate_with_most_right_answers_is_chosen(asking: Asking) -> None:
    pivots = ({"pivot": "first"}, {"pivot": "mean_farthest"})
    method = Method("mine", "todre", {"stage2": False}, candidates=pivots)
    truths = asking.run(method, 0.1, pivots[1], file="truth").answers
    assert truths != asking.run(method, 0.1, pivots[0], file="other").answers
    known = [replace(q, answer=answer) for q, answer in zip(asking.questions, truths, strict=True)]
    tuning = replace(asking, questions=known, folder=asking.folder / "tuning")
    assert choose(tuning, method, 0.1) == pivots[1]
    assert len(list(tuning.folder.iterdir())) == 2


def test_among_equals_the_first_candidate_is_chosen_and_one_that_refuses_never(asking: Asking) -> None:
    late = {"observe": [0], "prune_after": [5], "ratios": [0.5]}
    early = late | {"prune_after": [0]}
    method = Method("mine", "transprune", candidates=(late, early, early | {"alpha": 0.5}))
    assert choose(asking, method, 0.25) == early
    with pytest.raises(Refused, match="budget of at least"):
        choose(asking, replace(method, candidates=(late, late)), 0.3)
