"""Spans that a model wrote, and others in their place: what is replaced, what stays, what is read as the answer."""

import pytest
import torch

from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.point_questions import PointTexts, point_questions
from vistok.lvlm.replacement_test import OWN, _Answers, _without_a_cut_span, answer_direct, replacement_test
from vistok.lvlm.span_replacement import MODES

from .perception_fixtures import save_untrained


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return load_perception(save_untrained(tmp_path_factory.mktemp("perception") / "model"))


@pytest.fixture(scope="module")
def questions(host):
    return point_questions(PointTexts(host.attachment.families[0]), 3)


def test_every_mode_starts_from_the_spans_the_model_wrote_and_identity_goes_on_as_it_did(host, questions):
    found = replacement_test(host, questions, MODES)
    assert list(found) == [OWN, *MODES]
    for place, question in enumerate(questions):
        own = found[OWN][place]
        assert 1 <= len(own.codes) <= max(question.points for question in questions)
        assert (
            found["identity"][place].label == own.label
            and found["identity"][place].codes[: len(own.codes)] == own.codes
        )
        assert set(found["constant"][place].codes[: len(own.codes)]) == {8}
        if len(own.codes) == question.points:
            assert found["oracle"][place].codes[: question.points] == question.codes
        for mode in MODES:
            assert found[mode][place].text.split("<DEPTH_START>")[0] == own.text.split("<DEPTH_START>")[0]


def test_batches_of_any_size_give_the_same_answers(host, questions):
    assert answer_direct(host, questions, batch=1) == answer_direct(host, questions, batch=3)


def test_the_label_is_read_behind_the_last_span(host, questions):
    tokenizer, answers = host.processor.tokenizer, _Answers(host, questions, 3)
    label = questions[0].label
    before = tokenizer(f"{label} far <DEPTH_START> <DEPTH_3> <DEPTH_END>", add_special_tokens=False).input_ids
    behind = tokenizer(f"then {label}", add_special_tokens=False).input_ids
    assert answers.said(before).label is None and answers.said(before).codes == (3,)
    assert answers.said(before + behind).label == label


def test_a_span_that_was_cut_off_is_left_out(host):
    depth = host.attachment.maps["depth"]
    whole = [5, depth.begin[0], depth.codes[1], depth.end[0], 6]
    assert _without_a_cut_span([*whole, depth.begin[0], depth.codes[2]], depth) == whole
    assert _without_a_cut_span(whole, depth) == whole


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
