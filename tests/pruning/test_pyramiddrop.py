"""PyramidDrop on attention maps written by hand, stage by stage, and its preset."""

from dataclasses import replace
from typing import Any

import pytest
import torch

import vistok

from .layer_views import Attention, causal_maps, view_of


def begin(view: Any, budget: Any = None, **options: Any) -> Any:
    pruner: Any = vistok.pruner("pyramiddrop", **options)
    return pruner.begin(view, budget)


def test_a_stage_keeps_what_the_instructions_last_token_sees_in_the_next_layer() -> None:
    view, maps = view_of(["svvvvvtt", "svvvvt"], layers=8), causal_maps(2, 8, heads=3)
    attention = Attention(maps)
    cut = begin(view).prune(replace(view, layer=1, next_attention=attention))
    first, second = maps[0].double().mean(0)[7, 1:6], maps[1].double().mean(0)[5, 1:5]
    assert cut.lengths.tolist() == [2, 2]  # floor(5 / 2), floor(4 / 2)
    torch.testing.assert_close(cut.scores[0].double(), first, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(cut.scores[1].double(), torch.cat([second, second[:1] * 0]), rtol=1e-6, atol=1e-7)
    for row, expected in enumerate((first, second)):
        assert cut.index[row].tolist() == sorted(expected.argsort(descending=True)[:2].tolist())
    assert [rows.nonzero().tolist() for rows in attention.asked] == [[[0, 7], [1, 5]]]


def test_ratios_count_from_the_original_tokens() -> None:
    view = view_of(["s" + "v" * 17 + "t"], layers=8)
    run, kept = begin(view), []
    for layer, left in ((1, 17), (3, 8), (5, 4)):
        now = view_of(["s" + "v" * left + "t"], layer=layer, layers=8, original=torch.tensor([17]))
        cut = run.prune(replace(now, next_attention=Attention(causal_maps(1, left + 2))))
        kept.append(int(cut.lengths))
    assert kept == [8, 4, 2]  # floors of 8.5, 4.25 and 2.125


def test_a_last_visual_token_stays_unless_the_ratio_is_zero() -> None:
    view = view_of(["svvt"], layers=8)
    shown = replace(view, layer=5, next_attention=Attention(causal_maps(1, 4)))
    assert begin(view).prune(shown).lengths.tolist() == [1]
    assert begin(view, ratios=[0.5, 0.25, 0.0]).prune(shown).index.shape == (1, 0)


def test_equal_attention_keeps_the_lowest_places_and_nan_goes_first() -> None:
    view = view_of(["svvvvt"], layers=8)
    maps = torch.full((1, 1, 6, 6), 0.1)
    maps[..., 1] = torch.nan
    assert begin(view).prune(replace(view, layer=1, next_attention=Attention(maps))).index.tolist() == [[1, 2]]


def test_a_budget_is_the_mean_over_layers() -> None:
    # Two layers of eight see everything; 2, 2 and 2 layers behind the cuts see in proportion 4 : 2 : 1.
    view = view_of(["s" + "v" * 70 + "t"], layers=8)
    run = begin(view, 35)
    assert [float(run.fractions[layer]) for layer in (1, 3, 5)] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    with pytest.raises(ValueError, match="pyramiddrop: expected a budget of at least 0.250"):
        begin(view, 0.2)


@pytest.mark.parametrize(
    ("layers", "cuts"), [(32, (7, 15, 23)), (28, (6, 13, 20)), (8, (1, 3, 5)), (4, (0, 1, 2)), (2, (0,))]
)
def test_the_preset_cuts_behind_the_papers_layers_of_32_and_quarters_of_any_decoder(
    layers: int, cuts: tuple[int, ...]
) -> None:
    pruner: Any = vistok.pruner("pyramiddrop")
    assert pruner.plan.resolve(layers).prune_after == cuts and pruner.plan.positions == "reindex"
    assert tuple(pruner.begin(view_of(["svvt"], layers=layers)).fractions) == cuts


def test_ratios_that_do_not_fall_are_refused() -> None:
    with pytest.raises(ValueError, match="pyramiddrop: expected 3 ratios"):
        vistok.pruner("pyramiddrop", ratios=[0.25, 0.5, 0.125])
