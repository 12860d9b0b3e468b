"""DART: pivots and duplicates by hand, and against its rule in plain float64 loops."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.protocols import LayerCut, LayerView

from .layer_views import Attention, view_of


def one_cut(view: LayerView, keys: Tensor, budget: Any = None, **options: Any) -> LayerCut:
    pruner: Any = vistok.pruner("dart", **({"layer": 0} | options))
    shown = replace(view, layer=0, attention=Attention(torch.zeros(0), keys))
    cut: LayerCut = pruner.begin(view, budget).prune(shown)
    return cut


def keys_of(sizes: list[float]) -> Tensor:
    """Two key heads of width 2 whose entries have the magnitudes of `sizes` on average, signs mixed."""
    size = torch.tensor(sizes)
    first = torch.stack([size, -size], 1)
    return torch.stack([first * 0.5, -first * 1.5])[None]


def hidden_of(degrees: list[float]) -> Tensor:
    angle = torch.tensor(degrees).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)[None]


def test_the_pivot_takes_what_is_least_like_it() -> None:
    #                          s   v   v   v    v    v   t
    view = view_of(["svvvvvt"], hidden=hidden_of([0, 10, 20, 100, 170, 190, 60]))
    keys = keys_of([99.0, 1, 5, 2, 3, 4, 1])
    # The pivot is the visual token at 20 degrees; farthest from it are 190 (170 away), 170 (150), 100 (80), 10.
    for ratio, kept in ((0.2, [1]), (0.4, [1, 4]), (0.6, [1, 3, 4]), (0.8, [1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])):
        assert one_cut(view, keys, ratio=ratio, image_pivots=1, text_pivots=0).index.tolist() == [kept]


def test_visual_pivots_come_first_and_the_largest_first_and_share_the_rest() -> None:
    view = view_of(["vvvvvvt"], hidden=hidden_of([0, 90, 180, 170, 280, 265, 350]))
    keys = keys_of([6.0, 5, 1, 1, 1, 1, 9])
    # Pivots 0 (0 degrees), 1 (90 degrees), text (350). Three more: 0 takes 180, 1 takes 280 (190 away, 265: 175).
    assert one_cut(view, keys, ratio=4 / 6, image_pivots=2, text_pivots=1).index.tolist() == [[0, 1, 2, 5]]
    # The text at 350 is 180 away from 170, 85 from 265.
    assert one_cut(view, keys, ratio=5 / 6, image_pivots=2, text_pivots=1).index.tolist() == [[0, 1, 2, 3, 5]]


def test_text_pivots_are_of_the_instruction_alone() -> None:
    view = view_of(["svtvvt"], hidden=hidden_of([0, 0, 0, 90, 180, 90]))
    # Text between images has larger keys, and would take 180; the instruction at 90 degrees takes 0 instead? It is 90
    # away from both 0 and 180: the lowest place.
    keys = keys_of([9.0, 1, 9, 3, 1, 2])
    assert one_cut(view, keys, ratio=2 / 3, image_pivots=1, text_pivots=1).index.tolist() == [[0, 1]]


def by_loops(view: LayerView, keys: Tensor, row: int, count: int, images: int, texts: int) -> list[int]:
    """The rule for one item, in float64."""
    sizes = keys[row].double().abs().sum(2).mean(0)
    visual = view.visual[row].nonzero().flatten().tolist()
    behind = view.instruction[row].nonzero().flatten().tolist()

    def largest(places: list[int], number: int) -> list[int]:
        return sorted(places, key=lambda place: (-float(sizes[place]), place))[:number]

    kept = largest(visual, min(images, count))
    pivots = kept + largest(behind, texts)
    rest = count - len(kept)
    hidden = view.hidden[row].double()
    for number, pivot in enumerate(pivots):
        quota = rest // len(pivots) + (number < rest % len(pivots))
        free = [place for place in visual if place not in kept]
        likeness = torch.cosine_similarity(hidden[pivot][None], hidden[free], dim=1) if free else torch.zeros(0)
        kept = kept + [free[i] for i in likeness.argsort(stable=True)[:quota].tolist()]
    return sorted(visual.index(place) for place in kept)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0.01, 1.0), st.integers(1, 5), st.integers(0, 5))
def test_a_ragged_batch_keeps_what_plain_loops_keep(seed: int, ratio: float, images: int, texts: int) -> None:
    prompts = ["s" + "v" * 17 + "ttt", "svvvtVvvvvvt", "vvt", "svvvv"]
    view, draw = view_of(prompts), torch.Generator().manual_seed(seed)
    view = replace(view, hidden=torch.randn(view.hidden.shape, generator=draw))
    keys = torch.randn(len(prompts), 2, view.valid.shape[1], 4, generator=draw)
    cut = one_cut(view, keys, ratio=ratio, image_pivots=images, text_pivots=texts)
    assert cut.lengths is not None
    for row, count in enumerate(view.counts.tolist()):
        kept = max(1, round(ratio * count))
        expected = by_loops(view, keys, row, kept, images, texts)
        assert len(expected) == kept
        assert cut.index[row, : int(cut.lengths[row])].tolist() == expected


def test_equal_tokens_go_by_place_and_broken_ones_go_first() -> None:
    view = view_of(["svvvvvt"], hidden=torch.ones(1, 7, 3))
    assert one_cut(view, torch.ones(1, 2, 7, 4), ratio=0.6, image_pivots=1).index.tolist() == [[0, 1, 2]]
    view.hidden[0, 2] = torch.nan
    keys = torch.ones(1, 2, 7, 4)
    keys[0, :, 1] = torch.nan
    # The pivot is the lowest place with a size, the second token; nothing is like it.
    assert one_cut(view, keys, ratio=0.6, image_pivots=1, text_pivots=1).index.tolist() == [[0, 1, 2]]


def test_a_ratio_of_zero_drops_all_and_a_small_one_leaves_one() -> None:
    view, keys = view_of(["svvvvvt"]), torch.rand(1, 2, 7, 4, generator=torch.Generator().manual_seed(2))
    assert one_cut(view, keys, ratio=0.0).index.shape == (1, 0)
    assert one_cut(view, keys, ratio=0.01).index.shape == (1, 1)


def test_a_budget_is_the_mean_over_layers() -> None:
    view = view_of(["s" + "v" * 30 + "t"])
    assert one_cut(view, torch.rand(1, 2, 32, 4, generator=torch.Generator()), budget=15).index.shape == (1, 10)
    with pytest.raises(ValueError, match="dart: expected a budget of at least 0.250"):
        one_cut(view, torch.zeros(1, 2, 32, 4), budget=0.2)


@pytest.mark.parametrize(("layers", "index"), [(2, 0), (8, 0), (28, 0), (32, 1)])
def test_the_presets_cut_behind_the_papers_layer_of_32(layers: int, index: int) -> None:
    pruner: Any = vistok.pruner("dart")
    assert pruner.plan.resolve(layers).prune_after == (index,) and pruner.plan.positions == "keep"
    view = view_of(["s" + "v" * 576 + "t"], layers=layers)
    for name, kept in (("dart", 128), ("dart_low", 64)):
        own: Any = vistok.pruner(name)
        shown = replace(view, layer=index, attention=Attention(torch.zeros(0), torch.ones(1, 1, 578, 2)))
        assert own.begin(view).prune(shown).lengths.tolist() == [kept]


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="image_pivots >= 1"):
        vistok.pruner("dart", image_pivots=0)
    with pytest.raises(ValueError, match="dart: expected 1 ratios"):
        vistok.pruner("dart", ratio=-0.5)
