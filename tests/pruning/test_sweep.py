"""Sweep, its scorers, selectors and stop rules, against loops over one item in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.pruning._scorers import SCORERS, quality
from vistok.pruning._selectors import SELECTORS
from vistok.pruning._stops import enough
from vistok.tokens import TokenSpec, TokenTensor


def random_points(items: int, tokens: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of length one, and worths."""
    draw = torch.Generator().manual_seed(seed)
    points = torch.nn.functional.normalize(torch.randn(items, tokens, width, generator=draw), dim=2)
    return points, torch.rand(items, tokens, generator=draw)


def by_hand(selector: str, points: Tensor, worth: Tensor, k: int) -> list[int]:
    """Picks of one item, every gain worked out from all picks anew."""
    cosine = points.double() @ points.double().T
    picks: list[int] = []
    for _ in range(k):
        gains = []
        for place, own in enumerate(worth.double().tolist()):
            apart = [1 - float(cosine[place, pick]) for pick in picks]
            if selector == "max_min":
                own *= min(apart, default=1.0)
            elif selector == "max_sum":
                own *= sum(apart) / len(apart) if apart else 1.0
            elif selector == "suppress":
                for gap in apart:
                    own *= min(1.0, max(0.0, gap))
            elif selector == "dpp":
                rows = [*picks, place]
                weights = torch.diag(worth.double()[rows])
                own = float(torch.linalg.det(weights @ cosine[rows][:, rows] @ weights))
            gains.append(-1.0 if place in picks else own)
        picks.append(max(range(len(gains)), key=gains.__getitem__))
    return picks


@pytest.mark.parametrize("selector", SELECTORS)
def test_picks_are_those_of_the_formula(selector: str) -> None:
    points, worth = random_points(3, 14, 6)
    picks = SELECTORS[selector](points, worth, 5, torch.ones(3, 14, dtype=torch.bool))
    assert picks.tolist() == [by_hand(selector, points[item], worth[item], 5) for item in range(3)]


@pytest.mark.parametrize("selector", SELECTORS)
def test_equal_tokens_are_taken_from_the_front_and_a_short_item_repeats_its_last_pick(selector: str) -> None:
    points = torch.tensor([[[1.0, 0.0]] * 3 + [[0.0, 1.0]]])
    usable = torch.tensor([[False, True, True, False]])
    picks = SELECTORS[selector](points, torch.ones(1, 4), 4, usable)
    assert picks.tolist() == [[1, 2, 2, 2]]


def test_a_token_takes_worth_from_what_is_like_it() -> None:
    # Token 1 is worth more than token 2, but points where token 0 does.
    embeds = torch.tensor([[[4.0, 0.0], [3.9, 0.1], [0.0, 2.0]]])
    tokens = TokenTensor(TokenSpec("toy", dim=2), embeds=embeds)
    for selector, expected in (("top_k", [0, 1]), ("suppress", [0, 2]), ("max_min", [0, 2])):
        pruner = vistok.pruner("sweep", scorer="norm", selector=selector)
        assert pruner.select(tokens, 2).index.tolist() == [expected]
    assert vistok.pruner("sweep", scorer="norm", selector="suppress", weight=0.0).select(tokens, 1).index.tolist() == [
        [0]
    ]


def test_distinct_tokens_are_those_that_point_away_from_the_mean() -> None:
    embeds = torch.tensor([[[1.0, 0.0], [2.0, 0.1], [0.0, 3.0], [5.0, 0.0]]])
    worth = quality("distinct", embeds, torch.ones(1, 4, dtype=torch.bool), {})
    assert worth.argmax() == 2 and worth.max() == 1 and worth.min() == 0


def test_text_scores_by_the_mean_cosine_with_the_spoken_words() -> None:
    embeds = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]])
    text = torch.tensor([[[2.0, 0.0], [0.0, 9.0]]])
    context: dict[str, Any] = {"text": text, "text_mask": torch.tensor([[True, False]])}
    assert quality("text", embeds, torch.ones(1, 3, dtype=torch.bool), context).tolist() == [[1.0, 0.5, 0.0]]


@pytest.mark.parametrize("scorer", SCORERS)
def test_worth_is_between_0_and_1_and_0_where_a_token_does_not_count(scorer: str) -> None:
    points, scores = random_points(2, 9, 4)
    context = {"attention": scores, "instruction_attention": scores, "text": points[:, :3], "text_mask": None}
    usable = torch.arange(9) < torch.tensor([[9], [4]])
    worth = quality(scorer, points, usable, context)
    assert (worth[~usable] == 0).all() and worth.min() >= 0
    assert worth.amax(1).tolist() == [1.0, 1.0]


def test_mass_stops_behind_the_pick_that_completes_the_share() -> None:
    worth = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.7, 0.1, 0.1, 0.1]])
    picks = torch.arange(4).expand(2, -1)
    points = torch.zeros(2, 4, 2)
    assert enough("mass", 0.75, points, worth, picks).tolist() == [2, 2]
    assert enough("mass", 1.0, points, worth, picks).tolist() == [3, 4]
    assert enough("mass", 0.1, points, worth, picks).tolist() == [1, 1]


def test_radius_and_similarity_stop_in_front_of_the_first_pick_that_adds_too_little() -> None:
    angles = torch.tensor([[0.0, 90.0, 45.0, 46.0]]).deg2rad()
    points = torch.stack([angles.cos(), angles.sin()], 2)
    picks = torch.arange(4)[None]
    worth = torch.ones(1, 4)
    # 1 - cos(45) = 0.29 to the nearest; mean cosine (0 + 1)/... = 0.707 of the third.
    assert enough("radius", 0.2, points, worth, picks).tolist() == [3]
    assert enough("radius", 0.3, points, worth, picks).tolist() == [2]
    assert enough("similarity", 0.7, points, worth, picks).tolist() == [2]
    assert enough("similarity", 0.75, points, worth, picks).tolist() == [3]


def test_images_that_need_less_get_fewer_tokens_and_none_more_than_the_budget() -> None:
    draw = torch.Generator().manual_seed(3)
    plain = torch.ones(20, 8) + 0.001 * torch.randn(20, 8, generator=draw)
    plain[7] = -1.0
    busy = torch.randn(20, 8, generator=draw)
    tokens = TokenTensor(TokenSpec("toy", dim=8), embeds=torch.stack([plain, busy]))
    chosen = vistok.pruner("sweep_adaptive").select(tokens, 12)
    assert chosen.lengths is not None and chosen.lengths.tolist()[0] < chosen.lengths.tolist()[1] <= 12
    full = vistok.pruner("sweep").select(tokens, 12)
    for row, length in enumerate(chosen.lengths.tolist()):
        assert set(chosen.index[row, :length].tolist()) <= set(full.index[row].tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scorer": "colour"}, "scorer to be one of"),
        ({"selector": "best"}, "selector to be one of"),
        ({"stop": "never"}, "stop to be one of"),
        ({"weight": -1.0}, "weight >= 0, got -1"),
    ],
)
def test_settings_that_do_not_exist_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"sweep: expected {message}"):
        vistok.pruner("sweep", **settings)


def test_context_that_a_scorer_lacks_is_named() -> None:
    tokens = TokenTensor(TokenSpec("toy", dim=2), embeds=torch.ones(1, 3, 2))
    with pytest.raises(ValueError, match=r"sweep: expected attention \[1, 3\], got none"):
        vistok.pruner("sweep_attention").select(tokens, 2)
