"""FastV on attention maps written by hand, and its preset."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import LayerCut, LayerView

from .layer_views import Attention, causal_maps, view_of


def one_cut(view: LayerView, maps: Tensor, budget: Any = None, **options: Any) -> tuple[LayerCut, Attention]:
    pruner: Any = vistok.pruner("fastv", **options)
    attention = Attention(maps)
    layer = pruner.plan.resolve(view.layers).prune_after[0]
    return pruner.begin(view, budget).prune(replace(view, layer=layer, attention=attention)), attention


def test_scores_are_the_last_tokens_row_of_attention_averaged_over_heads() -> None:
    view, maps = view_of(["svvvvtt", "svvtt"]), causal_maps(2, 7, heads=3)
    cut, attention = one_cut(view, maps)
    # The second prompt ends at place 4; what follows is padding.
    first, second = maps[0].double().mean(0)[6, 1:5], maps[1].double().mean(0)[4, 1:3]
    assert cut.scores is not None and cut.lengths is not None
    torch.testing.assert_close(cut.scores[0].double(), first, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(cut.scores[1, :2].double(), second, rtol=1e-6, atol=1e-7)
    assert [rows.nonzero().tolist() for rows in attention.asked] == [[[0, 6], [1, 4]]]
    assert cut.lengths.tolist() == [2, 1]
    assert cut.index[0].tolist() == sorted(first.argsort(descending=True)[:2].tolist())
    assert cut.index[1, :1].tolist() == [int(second.argmax())]


def rows_of(scores: list[float]) -> Tensor:
    """[1, 1, n, n] for the prompt s v..v t: what its last token gives to the visual ones."""
    maps = torch.zeros(1, 1, len(scores) + 2, len(scores) + 2)
    maps[0, 0, -1, 1:-1] = torch.tensor(scores)
    return maps


@pytest.mark.parametrize(
    ("scores", "ratio", "kept"),
    [
        ([0.1, 0.4, 0.2, 0.3], 0.5, [1, 3]),
        ([0.2, 0.2, 0.2, 0.2], 0.5, [0, 1]),
        ([0.1, torch.nan, 0.2, 0.1], 0.75, [0, 2, 3]),
        ([torch.nan] * 4, 0.5, [0, 1]),
        ([0.1, 0.4, 0.2, 0.3], 0.01, [1]),
        ([0.1, 0.4, 0.2, 0.3], 0.0, []),
        ([0.1, 0.4, 0.2, 0.3], 1.0, [0, 1, 2, 3]),
        ([0.1, 0.4, 0.2], 0.5, [1, 2]),  # 1.5 is rounded to 2
    ],
)
def test_the_best_stay_in_their_order_ties_lowest_first_nan_last(
    scores: list[float], ratio: float, kept: list[int]
) -> None:
    cut, _ = one_cut(view_of(["s" + "v" * len(scores) + "t"]), rows_of(scores), ratio=ratio)
    assert cut.index.tolist() == [kept]


def test_images_share_one_pool() -> None:
    cut, _ = one_cut(view_of(["svvtvvt"]), causal_maps(1, 7) * 0 + torch.tensor([0, 4, 1, 9, 3, 2, 9]) / 28)
    assert cut.index.tolist() == [[0, 2]]


def test_a_budget_is_the_mean_over_layers() -> None:
    view = view_of(["s" + "v" * 30 + "t"], layers=4)
    # One layer of four sees 30, three see 10: 15 per layer.
    cut, _ = one_cut(view, causal_maps(1, 32), budget=15, layer=0)
    assert cut.index.shape == (1, 10)
    with pytest.raises(ValueError, match="fastv: expected a budget of at least 0.250"):
        one_cut(view, causal_maps(1, 32), budget=0.2, layer=0)


@pytest.mark.parametrize(("layers", "index"), [(2, 0), (4, 0), (8, 0), (28, 0), (32, 1), (40, 1), (80, 4)])
def test_the_preset_cuts_behind_the_papers_layer_of_32_and_a_layer_of_any_decoder(layers: int, index: int) -> None:
    pruner: Any = vistok.pruner("fastv")
    plan = pruner.plan.resolve(layers)
    assert plan.prune_after == (index,) and plan.positions == "keep" and plan.observe == ()


def test_the_presets_keep_what_the_paper_reports() -> None:
    view = view_of(["s" + "v" * 576 + "t"], layers=32)
    maps = causal_maps(1, 578, heads=1)
    assert one_cut(view, maps)[0].index.shape == (1, 288)
    pruner: Any = vistok.pruner("fastv_low")
    assert pruner.ratios == (0.25,)


def test_a_ratio_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="fastv: expected 1 ratios"):
        vistok.pruner("fastv", ratio=1.5)
