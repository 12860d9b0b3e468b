"""Which tokens each rule keeps, and that the answers are those of a model that is given just these."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.data.scenes.render import render
from vistok.lvlm.ablation import (
    ALL,
    GREY,
    OTHER,
    RULES,
    Asked,
    ByScores,
    ablate,
    grid_scores,
    high_norm_scores,
    low_norm_scores,
    oracle_scores,
    random_scores,
    settings,
)
from vistok.lvlm.answer import answer_questions, speak
from vistok.lvlm.prompting import VisualQuestion, batches
from vistok.lvlm.scene_questions import (
    foreground_order,
    patch_cover,
    scene_foreground,
    scene_picture,
    scene_questions,
)
from vistok.tokens import TokenSpec, TokenTensor

from .micro_fixtures import tiny_micro

READ, FOREGROUND = scene_picture(64), scene_foreground(64)


@pytest.fixture(scope="module")
def host() -> tuple[Any, Any]:
    return tiny_micro()


@pytest.fixture(scope="module")
def asked() -> list[VisualQuestion]:
    return scene_questions("test", 14)


def given(rows: int, cols: int, number: int = 0) -> Asked:
    draw = torch.Generator().manual_seed(number)
    return Asked(
        number, torch.randn(rows * cols, 4, generator=draw), torch.rand(rows * cols, generator=draw), (rows, cols)
    )


def kept(scores: torch.Tensor, budget: int | float) -> list[int]:
    tokens = TokenTensor(TokenSpec("features", dim=1), embeds=torch.zeros(1, len(scores), 1))
    return ByScores().select(tokens, budget, scores=scores[None]).index[0].tolist()


def test_the_best_scores_are_kept_in_place_and_of_equal_ones_the_first() -> None:
    assert kept(torch.tensor([0.5, 2.0, -1.0, 2.0, 2.0]), 2) == [1, 3]
    assert kept(torch.tensor([0.0, 1.0, 0.0, 0.0]), 0.5) == [0, 1]


def test_the_grid_is_even_in_both_directions() -> None:
    quarter = kept(grid_scores(given(12, 12)), 0.25)
    assert [divmod(place, 12) for place in quarter] == [
        (row, col) for row in range(0, 12, 2) for col in range(0, 12, 2)
    ]
    half = kept(grid_scores(given(12, 12)), 0.5)
    assert all(sum(divmod(place, 12)) % 2 == 0 for place in half) and len(half) == 72
    tenth = torch.zeros(144)
    tenth[kept(grid_scores(given(12, 12)), 0.1)] = 1
    assert tenth.sum() == 14
    quadrants = tenth.reshape(2, 6, 2, 6).sum((1, 3))
    assert quadrants.min() >= 3


def test_random_tokens_are_drawn_for_each_question_and_fewer_are_among_more() -> None:
    first, second = random_scores(given(12, 12, 3)), random_scores(given(12, 12, 4))
    assert torch.equal(first, random_scores(given(12, 12, 3))) and not torch.equal(first, second)
    assert set(kept(first, 0.1)) < set(kept(first, 0.25)) < set(kept(first, 0.5))


def test_norms_from_either_end() -> None:
    asked = Asked(0, torch.tensor([[3.0, 4.0], [0.0, 1.0], [6.0, 8.0], [0.0, 2.0]]), torch.zeros(4), (2, 2))
    assert kept(high_norm_scores(asked), 2) == [0, 2] and kept(low_norm_scores(asked), 2) == [1, 3]
    assert torch.equal(oracle_scores(given(3, 3)), given(3, 3).foreground)


def test_the_oracle_lets_things_take_turns_and_then_takes_the_nearest_patches() -> None:
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 2:4, 2:5] = True  # all of patch 5, half of patch 6
    masks[1, 7, 0:3] = True  # half of patch 12, a quarter of patch 13
    order = foreground_order(masks, (4, 4)).flatten()
    assert (-order).argsort(kind="stable")[:4].tolist() == [5, 12, 6, 13]
    assert (order[[5, 12, 6, 13]] > 0).all() and order[3] == pytest.approx(-(2**0.5)) and order[4] == -1
    assert kept(torch.from_numpy(order), 3) == [5, 6, 12]
    assert not foreground_order(masks[:0], (4, 4)).any()


def test_a_patch_that_shows_two_things_counts_for_the_one_that_wishes_it_most() -> None:
    masks = np.zeros((2, 4, 4), dtype=bool)
    masks[0, 0:2, 0:2], masks[0, 0, 2] = True, True  # patch 0 first, patch 1 second
    masks[1, 1, 2:4] = True  # patch 1 alone
    order = foreground_order(masks, (2, 2)).flatten()
    assert order.tolist() == [4 + 1 / 2, 4 + 0.5 / 2, -1, -1]


def test_cover_is_the_share_of_pixels_also_where_patches_differ_in_size() -> None:
    mask = np.zeros((1, 5, 5), dtype=bool)
    mask[0, :, :2] = True
    cover = patch_cover(mask, (2, 2))
    assert cover.tolist() == [[2 / 3, 0.0, 2 / 3, 0.0]]


def test_foreground_is_where_things_are() -> None:
    seed = scene_questions("test", 1)[0].picture
    assert np.array_equal(FOREGROUND(seed, (64, 64)) > 0, render(seed, 64).instances > 0)


def test_every_setting_answers_every_question(host: Any, asked: Any) -> None:
    told: list[int] = []
    found = ablate(*host, asked, READ, FOREGROUND, batch=5, max_new_tokens=2, on_batch=told.append)
    assert list(found) == settings() and len(settings()) == 3 + 3 * len(RULES) and sum(told) == 14
    assert found[ALL] == answer_questions(*host, asked, READ, max_new_tokens=2)
    assert len({tuple(answers) for answers in found.values()}) > 10


def test_the_grey_picture_and_all_tokens_are_the_plain_model(host: Any, asked: Any) -> None:
    found = ablate(*host, asked, READ, FOREGROUND, budgets=(1.0,), batch=5, max_new_tokens=2)
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert found[GREY] == answer_questions(*host, asked, lambda _: grey, max_new_tokens=2)
    assert all(found[f"{rule} 100%"] == found[ALL] for rule in RULES)


def test_exchanged_tokens_are_another_picture_of_the_same_run(host: Any, asked: Any) -> None:
    model, processor = host
    found = ablate(model, processor, asked, READ, FOREGROUND, budgets=(), batch=5, max_new_tokens=2)
    order: list[int] = []
    with torch.inference_mode():
        for each in batches(model, processor, asked, READ, batch=5):
            order += each.numbers
    partner = {number: order[place - 1] for place, number in enumerate(order)} | {order[0]: order[4]}
    for number in order:
        swapped = VisualQuestion(asked[partner[number]].picture, asked[number].text)
        assert found[OTHER][number] == answer_questions(model, processor, [swapped], READ, max_new_tokens=2)[0]


@torch.inference_mode()
def test_a_cut_equals_hiding_the_other_tokens_from_attention(host: Any, asked: Any) -> None:
    """Positions are kept, so that a masked token and an absent one are the same to all others."""
    model, processor = host
    question = asked[:2]
    found = ablate(model, processor, question, READ, FOREGROUND, budgets=(0.25,), max_new_tokens=1)
    for each in batches(model, processor, question, READ):
        for row, number in enumerate(each.numbers):
            cover = torch.from_numpy(FOREGROUND(question[number].picture, (6, 6)).flatten())
            hidden = torch.ones(36, dtype=torch.bool)
            hidden[kept(cover, 0.25)] = False
            ids, mask = each.inputs["input_ids"][row : row + 1], each.inputs["attention_mask"][row : row + 1].clone()
            places = (ids[0] == model.config.image_token_id).nonzero()[:, 0]
            positions = mask.cumsum(1) - 1
            mask[0, places[hidden]] = 0
            pixels = processor.image_processor(images=[READ(question[number].picture)], return_tensors="pt")
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions.clamp(min=0), **pixels}
            assert speak(model, processor, inputs, 1)[0] == found["oracle 25%"][number]


def test_what_cannot_be_ablated_is_named(host: Any, asked: Any) -> None:
    for questions, batch in ((asked, 1), (asked[:1], 8), ([asked[0], asked[0]], 8)):
        with pytest.raises(ValueError, match="two questions a batch or more, each about a picture of its own"):
            ablate(*host, questions, READ, FOREGROUND, batch=batch)
    with pytest.raises(ValueError, match="LLaVA family"):
        ablate(torch.nn.Linear(1, 1), host[1], asked, READ, FOREGROUND)
