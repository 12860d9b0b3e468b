"""SparseVLM: raters, ratings, recycling and counts by hand and against the rule in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import LayerCut, LayerView
from vistok.pruning._density_peaks import density_peaks
from vistok.pruning.sparsevlm import raters

from .layer_views import Attention, causal_maps, view_of

ONE = {"prune_after": [0], "counts": [1], "of": 2}


def one_cut(view: LayerView, maps: Tensor, budget: Any = None, **options: Any) -> tuple[LayerCut, Attention]:
    pruner: Any = vistok.pruner("sparsevlm", **(ONE | options))
    attention = Attention(maps)
    return pruner.begin(view, budget).prune(replace(view, layer=0, attention=attention)), attention


def places(mask: Tensor) -> list[list[int]]:
    return [row.nonzero().flatten().tolist() for row in mask]


def test_raters_are_the_words_that_visual_tokens_are_nearest_to() -> None:
    #                            s    v       v       t        t        t
    hidden = torch.tensor([[[9.0, 9], [3, 0], [0, 2], [1, 0.1], [0, 0.2], [-5, -5]]])
    # Products with the text: 3, 0, -15 and 0.2, 0.4, -10; their softmax means are about .71, .32, 0 against 1/3.
    assert places(raters(view_of(["svvttt"], hidden=hidden))) == [[3]]


def test_raters_equal_the_formula_in_a_ragged_batch() -> None:
    prompts = ["svvvttttt", "svvtt", "vvvvvtvttt"]
    view = view_of(prompts)
    view.hidden[1, 5:] = torch.nan
    for row, found in enumerate(places(raters(view))):
        visual, text = (view.hidden[row, mask[row]].double() for mask in (view.visual, view.instruction))
        share = (visual @ text.T).softmax(1).mean(0)
        behind = view.instruction[row].nonzero().flatten()
        assert found == behind[share > share.mean()].tolist()


def test_who_rates_where_no_word_is_above_the_mean_and_where_there_is_no_word() -> None:
    view = view_of(["svvt", "svvtt", "svv", "st"])
    view.hidden[1, 3:] = 0
    assert places(raters(view)) == [[3], [3, 4], [], []]
    _, attention = one_cut(view, causal_maps(4, 5))
    assert places(attention.asked[0]) == [[3], [3, 4], [2], [1]]


def test_the_rating_is_the_mean_over_heads_and_raters_chosen_at_the_input() -> None:
    view, maps = view_of(["svvvvvvttt", "svvvvttt"]), causal_maps(2, 10, heads=3)
    cut, attention = one_cut(view, maps, recycle=False)
    rows = raters(view)
    assert torch.equal(attention.asked[0], rows) and cut.scores is not None and cut.lengths is not None
    for row, count in enumerate((6, 4)):
        expected = maps[row].double().mean(0)[rows[row]].mean(0)[1 : 1 + count]
        torch.testing.assert_close(cut.scores[row, :count].double(), expected, rtol=1e-5, atol=1e-7)
        best = sorted(expected.argsort(descending=True)[: count // 2].tolist())
        assert cut.index[row, : count // 2].tolist() == best
    assert cut.lengths.tolist() == [3, 2] and cut.embeds is None


def test_raters_are_found_again_behind_earlier_cuts() -> None:
    view = view_of(["svvvvtttt"])
    pruner: Any = vistok.pruner("sparsevlm", prune_after=[0, 1], counts=[2, 1], of=4, recycle=False)
    run = pruner.begin(view)
    left = view_of(["svvtttt"], layer=1, hidden=torch.zeros(1, 7, 6), original=view.original)
    left = replace(left, source=torch.tensor([[0, 2, 4, 5, 6, 7, 8]]))
    attention = Attention(causal_maps(1, 7))
    assert run.prune(replace(left, attention=attention)).lengths.tolist() == [1]
    assert places(attention.asked[0]) == [[place - 2 for place in places(raters(view))[0]]]


def maps_of(scores: Tensor, text: int = 1) -> Tensor:
    """[1, 1, n, n] for the prompt s v..v t..t: what its text gives to the visual tokens."""
    maps = torch.zeros(1, 1, len(scores) + 1 + text, len(scores) + 1 + text)
    maps[0, 0, -text:, 1:-text] = scores
    return maps


def test_the_best_of_the_dropped_are_recycled_as_means_where_their_clusters_have_centres() -> None:
    draw = torch.Generator().manual_seed(0)
    count, text = 120, 2
    view = view_of(["s" + "v" * count + "t" * text], hidden=torch.randn(1, count + 1 + text, 5, generator=draw))
    scores = torch.rand(count, generator=draw)
    cut, _ = one_cut(view, maps_of(scores, text))
    order = scores.argsort(descending=True)
    kept, pool = order[:60].tolist(), sorted(order[60 : 60 + 19].tolist())  # 60 kept, floor(.3 * 60) + 1 recycled
    points = view.hidden[0, 1 : 1 + count]
    owner = density_peaks(points[pool][None], torch.ones(1, 19, dtype=torch.bool), torch.tensor([2]))[0]
    expected = {place: points[place] for place in kept}
    for centre in owner.unique().tolist():  # 19 // 10 + 1 = 2 clusters
        joined = [pool[i] for i in range(19) if owner[i] == centre]
        expected[pool[centre]] = points[joined].double().mean(0).float()
    assert cut.lengths is not None and cut.embeds is not None
    assert cut.lengths.tolist() == [62] and cut.index[0].tolist() == sorted(expected)
    torch.testing.assert_close(cut.embeds[0], torch.stack([expected[place] for place in sorted(expected)]))


def test_kept_tokens_pass_unchanged_in_their_own_precision() -> None:
    view = view_of(["s" + "v" * 20 + "t"])
    view = replace(view, hidden=view.hidden.bfloat16())
    scores = torch.arange(20.0)
    cut, _ = one_cut(view, maps_of(scores))
    assert cut.embeds is not None and cut.embeds.dtype == torch.bfloat16
    assert torch.equal(cut.embeds[0, -10:], view.hidden[0, 11:21])
    # Of ten dropped ones four are recycled, into one token.
    mean = view.hidden[0, 7:11].float().mean(0).bfloat16()
    assert bool((cut.embeds[0, 0] == mean).all()) and cut.index[0, 0] in (6, 7, 8, 9)


@pytest.mark.parametrize(
    ("visual", "share", "length"),
    [
        (10, 0.5, 5 + 1),  # of 5 dropped, 2 in 1 cluster
        (100, 0.3, 30 + 3),  # of 70 dropped, 22 in 3 clusters
        (576, 300 / 576, 300 + 9),  # of 276 dropped, 83 in 9 clusters
        (10, 1.0, 10),
        (1, 0.5, 1),
        (10, 0.0, 0),
        (2, 0.5, 2),  # the one dropped token is its own cluster
    ],
)
def test_recycled_tokens_come_on_top_of_the_counts(visual: int, share: float, length: int) -> None:
    view = view_of(["s" + "v" * visual + "t"], width=2)
    scores = torch.rand(visual, generator=torch.Generator().manual_seed(1))
    cut, _ = one_cut(view, maps_of(scores), counts=[share * 1000], of=1000)
    assert cut.lengths is not None and cut.lengths.tolist() == [length] and cut.index.shape == (1, length)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 6, 20, 59, 60])
def test_under_a_budget_recycled_tokens_count(tokens: int) -> None:
    view = view_of(["s" + "v" * 60 + "t", "s" + "v" * 7 + "t"], width=3)
    maps = causal_maps(2, 62)
    # Two layers, the first of which sees everything.
    view = replace(view, layers=2)
    budget = torch.tensor([(60 + tokens) / 2, 7])
    cut, _ = one_cut(view, maps, budget)
    assert cut.lengths is not None and cut.lengths.tolist() == [tokens, 7]


def test_equal_ratings_keep_the_lowest_places_and_nan_goes_first() -> None:
    view = view_of(["svvvvt"])
    scores = torch.tensor([torch.nan, 1.0, 1.0, 1.0])
    cut, _ = one_cut(view, maps_of(scores), recycle=False)
    assert cut.index.tolist() == [[1, 2]]
    # A hidden state that is no number is nobody's mean.
    view.hidden[0, 4] = torch.nan
    cut, _ = one_cut(view, maps_of(scores))
    assert cut.index.tolist() == [[1, 2]] and cut.embeds is not None and bool(cut.embeds.isfinite().all())


@pytest.mark.parametrize(
    ("layers", "fractions"),
    [
        (32, {2: 300, 6: 200, 15: 110}),
        (28, {1: 300, 5: 200, 13: 110}),
        (8, {0: 200, 3: 110}),
        (4, {0: 200, 1: 110}),
    ],
)
def test_the_preset_cuts_behind_the_papers_layers_of_32(layers: int, fractions: dict[int, int]) -> None:
    pruner: Any = vistok.pruner("sparsevlm")
    assert pruner.plan.positions == "reindex"
    run = pruner.begin(view_of(["svvt"], layers=layers))
    assert {layer: float(kept) * 576 for layer, kept in run.fractions.items()} == pytest.approx(fractions)


@pytest.mark.parametrize(
    ("name", "counts"),
    [("sparsevlm_128", (303, 110, 36)), ("sparsevlm_96", (238, 48, 26)), ("sparsevlm_64", (66, 30, 17))],
)
def test_the_other_presets_have_the_released_counts(name: str, counts: tuple[int, ...]) -> None:
    pruner: Any = vistok.pruner(name)
    assert pruner.ratios == tuple(count / 576 for count in counts) and pruner.recycle


def test_a_setting_or_budget_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="sparsevlm: expected 3 ratios"):
        vistok.pruner("sparsevlm", counts=[600, 200, 110])
    with pytest.raises(ValueError, match="of=0"):
        vistok.pruner("sparsevlm", of=0)
    pruner: Any = vistok.pruner("sparsevlm")
    with pytest.raises(ValueError, match="sparsevlm: expected a budget of at least 0.250"):
        pruner.begin(view_of(["svvt"], layers=4), 0.1)
