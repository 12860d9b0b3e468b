"""Spans that a model wrote, and others in their place: what is replaced, what stays, what is read as the answer."""

import pytest
import torch

from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import OWN, SceneAnswers, answer_direct, replacement_test
from vistok.lvlm.span_replacement import MODES

from .perception_fixtures import save_untrained


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return load_perception(save_untrained(tmp_path_factory.mktemp("perception") / "model"))


@pytest.fixture(scope="module")
def questions(host):
    return point_questions(PointTexts(host.attachment.families[0]), 3)


def test_every_mode_writes_its_codes_and_identity_answers_as_the_model_did(host, questions):
    found = replacement_test(host, questions, MODES)
    assert list(found) == [OWN, *MODES]
    for place, question in enumerate(questions):
        own = found[OWN][place]
        assert 1 <= len(own.codes) <= max(question.points for question in questions)
        assert found["identity"][place] == own
        assert set(found["constant"][place].codes[: len(own.codes)]) == {8}
        assert set(found["first_repeat"][place].codes[: len(own.codes)]) == {own.codes[0]}
        oracle = found["oracle"][place].codes
        count = min(len(oracle), question.points)
        assert oracle[:count] == question.codes[:count]
        for mode in MODES:
            assert found[mode][place].text.split("<DEPTH_START>")[0] == own.text.split("<DEPTH_START>")[0]


def test_batches_of_any_size_give_the_same_answers(host, questions):
    assert answer_direct(host, questions, batch=1) == answer_direct(host, questions, batch=3)


def test_the_answer_is_read_behind_the_last_span(host, questions):
    tokenizer, answers = host.processor.tokenizer, SceneAnswers(host, questions, 3)
    before = tokenizer("far red star <DEPTH_START> <DEPTH_3> <DEPTH_END>", add_special_tokens=False).input_ids
    behind = tokenizer("farther red star", add_special_tokens=False).input_ids
    assert answers.said(before).answer == "" and answers.said(before).codes == (3,)
    assert answers.said(before + behind).answer == answers.said(behind[1:]).answer == "red star"


def test_mistakes_are_named(host, questions):
    with pytest.raises(ValueError, match="at least one question, got none"):
        replacement_test(host, [])
    with pytest.raises(ValueError, match="expected a mode among"):
        replacement_test(host, questions[:1], ["mean"])


def test_a_folder_without_an_adapter_is_the_base_model_with_rows(host, tmp_path):
    assert host.attachment.maps["depth"].codes == range(89, 105)
    with pytest.raises(FileNotFoundError, match="expected aurora_micro or a folder with config.json, rows.safetensors"):
        load_perception(tmp_path)
    assert torch.isfinite(host.model.lm_head.weight).all() and not host.model.training
