"""Relevance by hand, and the greedy MAP against determinants of the written-out kernel."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import vistok
from vistok.pruning._dpp import greedy_dpp
from vistok.pruning.cdpruner import rescaled, text_cosine
from vistok.tokens import TokenSpec, TokenTensor


def tokens_of(embeds: Tensor) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=embeds)


def picks_of(points: Tensor, quality: Tensor, k: int) -> list[int]:
    picks: list[int] = greedy_dpp(points[None], quality[None], k, torch.ones(1, len(points), dtype=torch.bool))[
        0
    ].tolist()
    return picks


def greedy(points: Tensor, quality: Tensor, k: int) -> list[int]:
    """argmax of the determinant itself, in float64, step by step."""
    weighted = points.double() * quality.double()[:, None]
    kernel = weighted @ weighted.mT
    chosen: list[int] = []
    while len(chosen) < k:
        rest = [slot for slot in range(len(points)) if slot not in chosen]
        values = [float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]])) for i in rest]
        chosen.append(rest[max(range(len(rest)), key=values.__getitem__)])
    return chosen


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 14), st.integers(5, 9), st.integers(0, 2**31))
def test_every_pick_makes_the_determinant_largest(slots: int, width: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    points = normalize(torch.randn(slots, width, generator=draw), dim=1)
    quality = torch.rand(slots, generator=draw) + 0.2
    k = min(slots, 4)
    assert picks_of(points, quality, k) == greedy(points, quality, k)


def test_the_greedy_set_is_near_the_best_one() -> None:
    draw = torch.Generator().manual_seed(1)
    for _ in range(20):
        points = normalize(torch.randn(9, 6, generator=draw), dim=1)
        gram = (points @ points.mT).double()

        def volume(chosen: tuple[int, ...], gram: Tensor = gram) -> float:
            return float(torch.linalg.det(gram[list(chosen)][:, list(chosen)]))

        best = max(volume(subset) for subset in combinations(range(9), 3))
        # The greedy volume is within (k!)^2 of the largest; on such points it is much closer.
        assert volume(tuple(picks_of(points, torch.ones(9), 3))) >= best / 2


def test_quality_and_diversity_by_hand() -> None:
    half = math.sqrt(0.5)
    points = torch.tensor([[1.0, 0.0], [1.0, 0.0], [half, half], [0.0, 1.0]])
    # First the largest q; then q^2 (1 - cos^2): 0, 0.81 / 2 and 0.16; 2 is worth more than 3, which is more unlike.
    assert picks_of(points, torch.tensor([1.0, 0.9, 0.9, 0.4]), 2) == [0, 2]
    assert picks_of(points, torch.tensor([1.0, 0.9, 0.9, 0.7]), 2) == [0, 3]
    assert picks_of(points, torch.ones(4), 2) == [0, 3]


def test_once_all_is_spanned_the_most_relevant_follow_and_no_pick_repeats() -> None:
    points = torch.eye(2).repeat(3, 1)
    quality = torch.tensor([1.0, 0.5, 0.2, 0.3, 0.9, 0.3])
    assert picks_of(points, quality, 6) == [0, 1, 4, 3, 5, 2]
    draw = torch.Generator().manual_seed(4)
    crowded = normalize(torch.randn(40, 3, generator=draw), dim=1)
    assert sorted(picks_of(crowded, torch.rand(40, generator=draw), 40)) == list(range(40))


def test_an_item_with_fewer_tokens_repeats_its_last_pick() -> None:
    valid = torch.tensor([[True, True, False], [False, False, False]])
    picks = greedy_dpp(torch.eye(3).expand(2, -1, -1), torch.tensor([[0.5, 1.0, 9.0]]).expand(2, -1), 3, valid)
    assert picks.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_relevance_is_the_mean_cosine_with_the_words_that_count() -> None:
    seen = torch.tensor([[[2.0, 0.0], [0.0, 3.0], [1.0, 1.0]]])
    text = torch.tensor([[[1.0, 0.0], [0.0, -5.0], [torch.nan, 0.0]]])
    everything = torch.ones(1, 3, dtype=torch.bool)
    found = text_cosine(seen, text, everything, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(found.float(), torch.tensor([[0.5, -0.5, 0.0]]))
    found = text_cosine(seen, text, everything, torch.tensor([[True, False, False]]))
    torch.testing.assert_close(found.float(), torch.tensor([[1.0, 0.0, math.sqrt(0.5)]]))
    assert not text_cosine(seen, text, everything, torch.zeros(1, 3, dtype=torch.bool)).any()


def test_relevance_is_stretched_over_each_item_alone() -> None:
    relevance = torch.tensor([[0.1, 0.3, 0.2, 9.0], [-1.0, -1.0, -1.0, -1.0]], dtype=torch.float64)
    valid = torch.tensor([[True, True, True, False], [True] * 4])
    found = rescaled(relevance, valid)
    torch.testing.assert_close(found[0, :3], torch.tensor([5e-6, 1.000005, 0.500005], dtype=torch.float64))
    assert found[1].tolist() == [1.0] * 4


def test_the_sign_says_whether_a_token_like_the_text_comes_first_or_last() -> None:
    tokens = tokens_of(torch.eye(3)[None])
    text = torch.tensor([[[1.0, 0.5, 0.0]]])
    assert vistok.pruner("cdpruner", sign=1).select(tokens, 1, text=text).index.tolist() == [[0]]
    assert vistok.pruner("cdpruner", sign=-1).select(tokens, 1, text=text).index.tolist() == [[2]]


def test_relevance_comes_from_image_embeds_where_there_are_some_and_diversity_from_the_tokens() -> None:
    tokens = tokens_of(torch.tensor([[[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]]))
    image_embeds = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.9, 1.0]]])
    text = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.1, 0.0]]])
    pruner = vistok.pruner("cdpruner", sign=1)
    chosen = [pruner.select(tokens, k, text=text, image_embeds=image_embeds).index[0].tolist() for k in (1, 2)]
    assert chosen == [[1], [1, 2]]


def test_without_any_text_it_is_diversity_alone() -> None:
    embeds = torch.randn(1, 12, 16, generator=torch.Generator().manual_seed(2))
    tokens, nothing = tokens_of(embeds), torch.zeros(1, 4, dtype=torch.bool)
    chosen = vistok.pruner("cdpruner").select(tokens, 5, text=torch.ones(1, 4, 16), text_mask=nothing).index
    assert chosen[0].tolist() == sorted(picks_of(normalize(embeds[0], dim=1), torch.ones(12), 5))


def test_wrong_context_and_settings_are_named() -> None:
    pruner, tokens = vistok.pruner("cdpruner"), tokens_of(torch.zeros(2, 4, 3))
    with pytest.raises(ValueError, match=r"cdpruner: expected text \[2, T, 3\], got none"):
        pruner.select(tokens, 2)
    with pytest.raises(ValueError, match=r"expected text \[2, T, 3\] for these tokens, got \[2, 5, 6\]"):
        pruner.select(tokens, 2, text=torch.zeros(2, 5, 6))
    with pytest.raises(ValueError, match=r"expected text_mask \[2, 5\] for these tokens, got \[2, 4\]"):
        pruner.select(tokens, 2, text=torch.zeros(2, 5, 3), text_mask=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"expected image_embeds \[2, 4, C\] for these tokens, got \[2, 3, 6\]"):
        pruner.select(tokens, 2, text=torch.zeros(2, 5, 6), image_embeds=torch.zeros(2, 3, 6))
    with pytest.raises(ValueError, match="expected sign -1 or 1, got 0"):
        vistok.pruner("cdpruner", sign=0)
