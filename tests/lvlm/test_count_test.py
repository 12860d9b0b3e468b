"""Lists in a model's mouth: they are what is asked for, and the model says the number alone."""

import pytest

from vistok.lvlm import token_families
from vistok.lvlm.count_questions import CountTexts, count_questions
from vistok.lvlm.count_test import LISTS, count_test
from vistok.lvlm.perception_model import load_perception
from vistok.lvlm.perception_rows import asked_of, chain_rows, counts_things
from vistok.lvlm.replacement_test import OWN, SceneAnswers, answer_direct

from .perception_fixtures import save_untrained

FAMILY = token_families.cells(12)
QUESTIONS = count_questions(CountTexts(FAMILY), 6)


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    return load_perception(save_untrained(tmp_path_factory.mktemp("untrained") / "model", FAMILY))


def test_true_lists_are_the_true_codes_and_random_ones_as_long_as_said(host):
    found = count_test(host, QUESTIONS)
    assert list(found) == [OWN, *LISTS]
    for place, question in enumerate(QUESTIONS):
        assert found["oracle"][place].codes == question.codes
        assert len(found["random_places"][place].codes) == len(found[OWN][place].codes)
        for name in LISTS:
            said = found[name][place]
            listed = CountTexts(FAMILY).listed(list(zip(said.codes[::2], said.codes[1::2], strict=True)))
            assert said.text.startswith(listed) and len(said.text.split()) <= len(listed.split()) + 2
    numbers = [len(said.codes) // 2 for said in found["random_number"]]
    assert len(set(numbers)) > 1 and set(numbers) <= set(range(5))
    again = count_test(host, QUESTIONS[:2], ("oracle",))
    assert again["oracle"] == found["oracle"][:2]


def test_the_model_reads_the_list_that_its_answer_begins_with(host):
    """Without training it goes on from words as the micro LVLM does, which says what was asked before."""
    answers = SceneAnswers(host, QUESTIONS[:2], 2)
    prompts = answers._inputs(QUESTIONS[:2], ["( <PIXEL_1> <PIXEL_2> ) no", "no"])
    written = [host.processor.tokenizer.decode(row) for row in prompts["input_ids"]]
    assert written[0].endswith("assistant : ( <PIXEL_1> <PIXEL_2> ) no") and written[1].endswith("assistant : no")


def test_no_span_is_asked_for_where_there_may_be_none(host):
    direct = answer_direct(host, QUESTIONS)
    right = sum(said.answer == question.answer for said, question in zip(direct, QUESTIONS, strict=True))
    assert right >= 3, "the base counts, and new rows at the mean do not keep it from that"
    own = chain_rows(host, QUESTIONS, replaced=False)
    assert list(own) == [OWN] and any(not said.codes for said in own[OWN])


def test_questions_are_those_that_the_model_was_trained_for(host, tmp_path):
    assert counts_things(host) and asked_of(host, 6) == QUESTIONS
    depths = load_perception(save_untrained(tmp_path / "model"))
    assert not counts_things(depths) and asked_of(depths, 2)[0].text.startswith("what is ")


def test_unknown_lists_are_named(host):
    with pytest.raises(ValueError, match="expected lists among oracle, random_places, random_number, got other"):
        count_test(host, QUESTIONS, ("other",))
