"""Scenes for ETT: packed questions score as single ones do, and what is assessed is what was asked."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vistok
from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.questions import KINDS, questions_about
from vistok.data.scenes.render import render
from vistok.lvlm.causal_lm import load_causal_lm
from vistok.lvlm.packed_questions import packed_positions
from vistok.lvlm.relevance import IGNORED
from vistok.train.ett_model import EndToEnd
from vistok.train.ett_scenes import Scenes, assess, close_up

EASY = ("color", "shape", "count_color")


@pytest.fixture(scope="module")
def model() -> EndToEnd:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**vistok.info("tokenizer", "ett_nano").tiny, "patch": 16}
    language = load_causal_lm("micro_lvlm")
    return EndToEnd(vistok.tokenizer("ett_nano", **settings), language).eval()  # type: ignore[arg-type]


@pytest.mark.parametrize("kinds", [KINDS, EASY])
def test_packed_questions_give_the_loss_of_each_question_alone(model: EndToEnd, kinds: tuple[str, ...]) -> None:
    scenes = Scenes(64, 16, 2, questions=3, kinds=kinds)
    batch = scenes.batch(5)
    assert batch.ids.shape == (2, 3 * scenes.slot) and int((batch.labels != IGNORED).sum()) == 2 * 3 * 2
    extra = {"position_ids": packed_positions(2, 3 + 16, 1, scenes.slot), "packing": (3 + 16, scenes.slot)}
    parts = [slice(slot * scenes.slot, (slot + 1) * scenes.slot) for slot in range(3)]
    alone = [
        model.caption_loss(replace(batch, ids=batch.ids[:, part], labels=batch.labels[:, part], extra=extra))
        for part in parts
    ]
    torch.testing.assert_close(model.caption_loss(batch), torch.stack(alone).mean())


def test_the_language_model_keeps_its_own_attention_for_all_else(model: EndToEnd) -> None:
    usual = model.language.config._attn_implementation
    batch = Scenes(64, 16, 2, questions=2, kinds=EASY).batch(5)
    model.caption_loss(batch)
    assert model.language.config._attn_implementation == usual
    with pytest.raises(TypeError):
        model.caption_loss(replace(batch, extra={**batch.extra, "packing": None}))
    assert model.language.config._attn_implementation == usual


def test_questions_are_of_the_named_kinds_about_what_is_drawn() -> None:
    for scenes in (Scenes(64, 16, 3, questions=4, kinds=EASY), Scenes(64, 16, 3, questions=4, kinds=EASY, radius=0.3)):
        words = {number: word for word, number in scenes.words.items()}
        batch, kinds = scenes.asked(7)
        assert {KINDS[kind] for kind in kinds.flatten().tolist()} <= set(EASY)
        for item, seed in enumerate(scenes.seeds[21:24]):
            layout = make_layout(seed) if scenes.radius is None else close_up(make_layout(seed), 0.3)
            assert torch.equal(batch.images[item], torch.from_numpy(render(layout, 64).image).permute(2, 0, 1) / 255)
            asked = {f"{question.text} assistant : {question.answer} </s>" for question in questions_about(layout)}
            for slot in batch.ids[item].split(scenes.slot):
                assert " ".join(words[int(i)] for i in slot).split(" <pad>")[0] in asked


def test_a_close_up_shows_the_nearest_thing_alone_and_near_the_middle() -> None:
    for seed in range(20):
        layout = make_layout(seed)
        (thing,) = close_up(layout, 0.35).things
        nearest = layout.things[0]
        assert (thing.shape, thing.color, thing.texture) == (nearest.shape, nearest.color, nearest.texture)
        assert thing.radius == 0.35 and abs(thing.x - 0.5) <= 0.125 and abs(thing.y - 0.5) <= 0.125


def test_batches_are_the_same_again_and_differ_by_number_and_split() -> None:
    scenes = Scenes(64, 16, 2)
    first = scenes.batch(1)
    again, other, held = scenes.batch(1), scenes.batch(2), Scenes(64, 16, 2, "validation").batch(1)
    assert torch.equal(first.images, again.images) and torch.equal(first.ids, again.ids)
    assert not torch.equal(first.images, other.images) and not torch.equal(first.images, held.images)
    assert first.images.min() >= 0 and first.images.max() <= 1


def test_a_prompt_says_what_the_scene_shows_with_padding_in_front() -> None:
    scenes = Scenes(64, 16, 3)
    batch = scenes.batch(0)
    assert batch.prompt is not None and batch.mask is not None
    words = {number: word for word, number in scenes.words.items()}
    for item, seed in enumerate(scenes.seeds[:3]):
        said = " ".join(words[int(i)] for i in batch.prompt[item][batch.mask[item] == 1])
        assert said == f"<s> user : {caption(make_layout(seed))} assistant :"
        assert batch.mask[item].tolist() == sorted(batch.mask[item].tolist())


def test_what_is_assessed_is_the_share_of_first_words_that_are_right(model: EndToEnd) -> None:
    scenes = Scenes(64, 16, 4, "validation", questions=6, kinds=EASY, radius=0.35)
    model.tokenizer.train()
    found = assess(model, scenes, 2)
    assert model.tokenizer.quantizer.training and not model.language.training
    model.eval()
    right: dict[str, list[bool]] = {}
    errors: list[float] = []
    for number in range(2):
        batch, kinds = scenes.asked(number)
        with torch.no_grad():
            logits = model.answer(batch).logits[:, 3 + 16 - 1 : -1]
            pictures = model.tokenizer.decode(model.tokenizer.encode(batch.images))
        errors += (-10 * (pictures - batch.images).square().mean((1, 2, 3)).log10()).tolist()
        for item in range(4):
            asked = iter(kinds[item].tolist())
            labels = F.pad(batch.labels[item], (1, 0), value=IGNORED)
            for place in range(len(labels) - 1):
                if labels[place + 1] != IGNORED and labels[place] == IGNORED:
                    hit = int(logits[item, place].argmax()) == int(labels[place + 1])
                    right.setdefault(KINDS[next(asked)], []).append(hit)
    assert sum(len(hits) for hits in right.values()) == 2 * 4 * 6
    assert found.by_kind == pytest.approx({kind: sum(hits) / len(hits) for kind, hits in right.items()})
    assert found.accuracy == pytest.approx(sum(found.by_kind.values()) / len(found.by_kind))
    assert found.psnr == pytest.approx(sum(errors) / len(errors), abs=1e-3)
    assert 0 < found.usage <= 1


def test_scenes_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="kinds among color, .*got \\['colour'\\] and None"):
        Scenes(64, 16, 2, kinds=["colour"])
    with pytest.raises(ValueError, match="radius > 0"):
        Scenes(64, 16, 2, radius=0)
    with pytest.raises(ValueError, match="scene 0 has no question"):
        Scenes(64, 16, 2, kinds=["nearest"], radius=0.3).batch(0)
    with pytest.raises(ValueError, match="below 2147483648"):
        Scenes(64, 16, 2).batch(2**31)
