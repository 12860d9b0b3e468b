"""Questions about points: the chain says true codes, and the label is that of the nearest or farthest."""

import pytest
import torch

from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.splits import split_of
from vistok.lvlm import token_families
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.micro import make_tokenizer
from vistok.lvlm.new_rows import attach
from vistok.lvlm.point_questions import REPEATED, PointTexts, level_weights, point_questions

from .vocabulary_fixtures import llama

FAMILY = token_families.depth(16)


def test_label_and_chain_follow_from_the_depths():
    for question in point_questions(PointTexts(FAMILY), 30):
        words = question.text.split()
        assert words[:4] == ["what", "is", question.kind, "?"] and len(words) == 4 + 2 * question.points
        best = max(question.codes) if question.kind == "nearest" else min(question.codes)
        names = [f"{color} {shape}" for color, shape in zip(words[4::2], words[5::2], strict=True)]
        assert question.codes[names.index(question.answer)] == best
        assert list(question.names) == names and question.read(question.codes[:-1]) is None
        assert question.read(question.codes) == question.answer
        spans = [
            f"far {name} <DEPTH_START> <DEPTH_{code}> <DEPTH_END>"
            for name, code in zip(names, question.codes, strict=True)
        ]
        assert question.chain == " ".join([*spans, question.conclusion])
        assert question.conclusion == f"{REPEATED[question.kind]} {question.answer}"


def test_questions_are_of_the_split_of_both_kinds_at_most_three_a_scene_and_always_the_same():
    found = point_questions(PointTexts(FAMILY), 30, split="validation")
    assert found == point_questions(PointTexts(FAMILY), 30, split="validation") and len(found) == 30
    seeds = [question.seed for question in found]
    assert {split_of(seed) for seed in seeds} == {"validation"} and max(map(seeds.count, seeds)) == 3
    assert 5 < sum(question.kind == "nearest" for question in found) < 25


def test_generation_says_the_spans_of_points_without_a_conclusion():
    texts, layout = PointTexts(FAMILY), make_layout(point_questions(PointTexts(FAMILY), 1)[0].seed)
    question, answer = texts.generation(layout, 0)
    points, said = question.removeprefix("how far ? ").split(), answer.split()
    depths = {f"{thing.color} {thing.shape}": thing.depth for thing in layout.things}
    for place in range(len(points) // 2):
        far, color, shape, begin, code, end = said[6 * place : 6 * place + 6]
        assert [color, shape] == points[2 * place : 2 * place + 2] and far == "far"
        expected = min(15, int((7.5 - depths[f"{color} {shape}"]) / 4 * 16))
        assert [begin, code, end] == ["<DEPTH_START>", f"<DEPTH_{expected}>", "<DEPTH_END>"]
    assert len(said) == 6 * len(points) // 2 and len({texts.generation(layout, number) for number in range(20)}) > 1


def test_every_word_is_known_to_the_micro_lvlm():
    tokenizer = make_tokenizer()
    attach(tokenizer, llama(len(tokenizer)), [FAMILY])
    texts = PointTexts(FAMILY)
    for question in point_questions(texts, 10):
        for text in (question.text, question.chain, *texts.generation(make_layout(question.seed), 0)):
            assert tokenizer.unk_token_id not in tokenizer(text).input_ids


def test_code_rows_start_between_levels_the_nearest_at_level_one():
    weights, ids = level_weights(16, {str(level): 100 + level for level in range(1, 9)})
    assert torch.allclose(weights.sum(1), torch.ones(16)) and ids.tolist() == list(range(101, 109))
    assert weights[15, 0] == weights[0, 7] == 1
    assert torch.allclose(weights[14, :2], torch.tensor([0.75, 0.25]))


def test_a_family_without_markers_is_refused():
    with pytest.raises(ValueError, match="'pixel': expected one marker before and one behind codes"):
        PointTexts(token_families.pixel(4))


def test_conclusions_repeat_what_was_asked_in_words_that_the_micro_lvlm_can_say():
    """Words that were never answers have all but one row in its head."""
    model, processor = load_lvlm("micro_lvlm")
    words, head = processor.tokenizer.get_vocab(), model.lm_head.weight.detach()

    def apart(first, second):
        return float((head[words[first]] - head[words[second]]).norm())

    assert apart(*REPEATED.values()) > 5 * apart(*REPEATED)
