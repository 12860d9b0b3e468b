"""Scenes for ETT: packed questions score as single ones do, and what is assessed is what was asked."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import vistok
from vistok.data.scenes.captions import caption
from vistok.data.scenes.layout import make_layout
from vistok.lvlm.causal_lm import load_causal_lm
from vistok.lvlm.packed_questions import NAME, packed_positions
from vistok.train.ett_model import EndToEnd
from vistok.train.ett_scenes import Scenes, assess
from vistok.train.scene_batches import IGNORED, SLOT_LENGTH


@pytest.fixture(scope="module")
def model() -> EndToEnd:
    torch.manual_seed(0)
    settings: dict[str, Any] = {**vistok.info("tokenizer", "ett_nano").tiny, "patch": 16}
    language = load_causal_lm("micro_lvlm")
    language.config._attn_implementation = NAME
    return EndToEnd(vistok.tokenizer("ett_nano", **settings), language).eval()  # type: ignore[arg-type]


def test_packed_questions_give_the_loss_of_each_question_alone(model: EndToEnd) -> None:
    scenes = Scenes(64, 16, 2, 3)
    batch = scenes.batch(5)
    packed = model.caption_loss(batch)
    alone: list[torch.Tensor] = []
    length = SLOT_LENGTH + 1  # the end behind an answer that fills its slot stands on the border to the next one
    ids, labels = (F.pad(part, (0, 1), value=fill) for part, fill in ((batch.ids, 0), (batch.labels, IGNORED)))
    extra = {"position_ids": packed_positions(2, 3 + 16, 1, length), "packing": (3 + 16, length), "use_cache": False}
    for slot in range(3):
        part = slice(slot * SLOT_LENGTH, slot * SLOT_LENGTH + length)
        own = labels[:, part].clone()
        own[:, 0] = IGNORED
        alone.append(
            model.caption_loss(replace(batch, ids=ids[:, part], labels=own, extra=extra)) * (own != IGNORED).sum()
        )
    torch.testing.assert_close(packed, torch.stack(alone).sum() / (batch.labels != IGNORED).sum())


def test_batches_are_the_same_again_and_differ_by_number_and_split() -> None:
    scenes = Scenes(64, 16, 2, 3)
    first = scenes.batch(1)
    again, other, held = scenes.batch(1), scenes.batch(2), Scenes(64, 16, 2, 3, "validation").batch(1)
    assert torch.equal(first.images, again.images) and torch.equal(first.ids, again.ids)
    assert not torch.equal(first.images, other.images) and not torch.equal(first.images, held.images)
    assert first.images.min() >= 0 and first.images.max() <= 1 and first.prompt is None


def test_a_prompt_says_what_the_scene_shows_with_padding_in_front() -> None:
    scenes = Scenes(64, 16, 3, 1, captions=True)
    batch = scenes.batch(0)
    assert batch.prompt is not None and batch.mask is not None
    words = {number: word for word, number in scenes.source.words.items()}
    for item, seed in enumerate(scenes.source.seeds[:3]):
        said = " ".join(words[int(i)] for i in batch.prompt[item][batch.mask[item] == 1])
        assert said == f"<s> user : {caption(make_layout(seed))} assistant :"
        assert batch.mask[item].tolist() == sorted(batch.mask[item].tolist())


def test_what_is_assessed_is_the_share_of_first_words_that_are_right(model: EndToEnd) -> None:
    scenes = Scenes(64, 16, 4, 6, "validation")
    model.tokenizer.train()
    found = assess(model, scenes, 2)
    assert model.tokenizer.quantizer.training and not model.language.training
    model.eval()
    right: dict[str, list[bool]] = {}
    errors: list[float] = []
    for number in range(2):
        batch, kinds = scenes.asked(number)
        with torch.no_grad():
            log_p = model.answer(batch).logits[:, 3 + 16 - 1 : -1]
            pictures = model.tokenizer.decode(model.tokenizer.encode(batch.images))
        errors += (-10 * (pictures - batch.images).square().mean((1, 2, 3)).log10()).tolist()
        for item in range(4):
            asked = iter(kinds[item].tolist())
            slots = F.pad(batch.labels[item], (1, 0), value=IGNORED)
            for place in range(len(slots) - 1):
                if slots[place + 1] != IGNORED and slots[place] == IGNORED:
                    kind = list(found.by_kind)[next(asked)]
                    right.setdefault(kind, []).append(int(log_p[item, place].argmax()) == int(slots[place + 1]))
    assert sum(len(hits) for hits in right.values()) == 2 * 4 * 6
    for kind, hits in right.items():
        # bfloat16 there, float32 here: a near tie may fall either way.
        assert abs(found.by_kind[kind] - sum(hits) / len(hits)) <= 1 / len(hits)
    assert found.psnr == pytest.approx(sum(errors) / len(errors), abs=1e-3)
    assert 0 < found.usage <= 1
