import torch

from vistok.data.scenes import KINDS, render, seeds_of
from vistok.data.scenes.readings import READINGS
from vistok.lvlm.micro import MicroSettings, make_tokenizer
from vistok.train.scene_batches import ASKED, IGNORED, SLOT_LENGTH, SceneBatches, choose_questions

SETTINGS = MicroSettings()


def test_a_batch_is_the_same_again_and_the_next_one_shows_other_scenes():
    batches = SceneBatches(SETTINGS, items=2, slots=20)
    first, again, other = batches.batch(5), SceneBatches(SETTINGS, 2, 20).batch(5), batches.batch(6)
    assert torch.equal(first.pixels, again.pixels) and torch.equal(first.ids, again.ids)
    assert not torch.equal(first.pixels, other.pixels)


def test_slots_hold_question_and_answer_as_the_tokenizer_writes_them():
    batch = SceneBatches(SETTINGS, items=3, slots=20).batch(0)
    tokenizer = make_tokenizer()
    for item, seed in enumerate(seeds_of("train")[:3]):
        asked = choose_questions(render(seed), 20)
        for slot, question in enumerate(asked):
            ids = batch.ids[item].view(20, SLOT_LENGTH)[slot]
            labels = batch.labels[item].view(20, SLOT_LENGTH)[slot]
            text = f"{question.text} assistant : {question.answer}"
            expected = tokenizer(text, add_special_tokens=False).input_ids
            assert ids[: len(expected)].tolist() == expected
            assert set(ids[len(expected) :].tolist()) <= {tokenizer.pad_token_id}
            predicting = (labels != IGNORED).nonzero().flatten().tolist()
            assert predicting == [len(expected) - 2, len(expected) - 1]
            assert labels[predicting].tolist() == [expected[-1], tokenizer.eos_token_id]
            assert ASKED[batch.kinds[item, slot]] == question.kind


def test_every_kind_and_reading_is_asked_before_one_is_asked_again():
    for seed in range(30):
        kinds = [question.kind for question in choose_questions(render(seed), 20)]
        assert len(kinds) == 20
        once = len(set(kinds))
        assert len(set(kinds[:once])) == once
    assert set(ASKED) == {*KINDS, *READINGS}
