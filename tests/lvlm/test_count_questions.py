"""Questions of counting: the chain lists every thing asked for, in order, and ends with how many there are."""

import numpy as np
import pytest

from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.questions import questions_about
from vistok.data.scenes.splits import seeds_of, split_of
from vistok.lvlm import token_families
from vistok.lvlm.count_questions import CountTexts, count_questions
from vistok.lvlm.micro import make_tokenizer
from vistok.lvlm.new_rows import attach

from .vocabulary_fixtures import llama

TEXTS = CountTexts(token_families.cells(12))


def test_the_chain_lists_cells_of_what_is_asked_from_left_to_right_and_then_the_number():
    for question in count_questions(TEXTS, 40):
        layout, word = make_layout(question.seed), question.text.split()[2]
        cells = sorted((int(t.x * 12), int(t.y * 12)) for t in layout.things if word in (t.color, t.shape))
        spans = [f"( <PIXEL_{column}> <PIXEL_{row}> )" for column, row in cells]
        assert question.chain == " ".join([*spans, "no", str(len(cells))])
        assert question.codes == tuple(np.array(cells, int).flatten()) and question.points == len(cells)
        assert question.answer == question.conclusion == str(len(cells)) == question.read(question.codes)
    assert question.read(question.codes + (1,)) is None


def test_test_questions_have_equally_many_of_both_kinds_and_of_every_number():
    found = count_questions(TEXTS, 40, split="validation")
    assert found == count_questions(TEXTS, 40, split="validation")
    assert {split_of(question.seed) for question in found} == {"validation"}
    assert sorted((q.kind, q.answer) for q in found[:10]) == [
        (kind, str(number)) for kind in ("count_color", "count_shape") for number in range(5)
    ]


def test_training_asks_each_number_that_a_scene_has_and_generation_for_the_same_lists():
    for seed in list(seeds_of("train")[:5]):
        layout = make_layout(seed)
        answers = {q.text: q.answer for q in questions_about(layout) if q.kind in ("count_color", "count_shape")}
        drawn = [TEXTS.question(layout, number) for number in range(60)]
        assert {question.answer for question in drawn} == set(answers.values())
        assert all(answers[question.text] == question.answer for question in drawn)
        text, listed = TEXTS.generation(layout, 3)
        asked = TEXTS.about(layout, text.replace("what", "how many"), "count_color")
        assert f"{listed} {asked.answer}" == asked.chain and text.startswith("what ")


def test_made_up_lists_are_in_order_of_any_number_and_shorter_at_first():
    rng = np.random.default_rng(0)
    asked = TEXTS.made_up(rng, 200)
    assert {question.points for question in asked} == set(TEXTS.made_up_points) == set(range(7))
    for question in asked:
        cells = list(zip(question.codes[::2], question.codes[1::2], strict=True))
        assert cells == sorted(cells) and question.answer == str(len(cells)) and question.seed == -1
    assert max(question.points for question in TEXTS.made_up(rng, 100, ease=1.0)) == 2
    assert {question.points for question in TEXTS.made_up(rng, 5, 3)} == {3}


def test_every_word_is_known_to_the_micro_lvlm():
    tokenizer = make_tokenizer()
    attach(tokenizer, llama(len(tokenizer)), [TEXTS.family])
    for question in count_questions(TEXTS, 20):
        for text in (question.text, question.chain, *TEXTS.generation(make_layout(question.seed), 0)):
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_a_family_without_markers_is_refused():
    with pytest.raises(ValueError, match="'pixel': expected one marker before and one behind codes"):
        CountTexts(token_families.pixel(4))
