"""TransPrune against the formulas of arXiv:2507.20630 and its released program, on views written by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import vistok
from vistok.protocols import LayerCut, LayerView, Transition

WIDTH = 6


class Fixed:
    """Attention that was worked out before: mean [B, n]."""

    def __init__(self, mean: Tensor) -> None:
        self.mean = mean
        self.rows: Tensor | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        self.rows = rows
        return self.mean

    def keys(self) -> Tensor:
        raise AssertionError("TransPrune asks for no keys")


def view_of(images: Tensor, layers: int = 4, layer: int = -1, seed: int = 0, **fields: Any) -> LayerView:
    """A view of prompts given as image_ids [B, n]."""
    draw = torch.Generator().manual_seed(seed)
    visual = images >= 0
    behind = visual.flip(1).cumsum(1).flip(1) == 0
    before = visual.cumsum(1) == 0
    counts = visual.sum(1)
    slots = visual.to(torch.int8).sort(dim=1, descending=True, stable=True).indices[:, : int(counts.max())]
    places = torch.arange(images.shape[1]).expand_as(images)
    made: dict[str, Any] = {
        "hidden": torch.randn(*images.shape, WIDTH, generator=draw),
        "visual": visual,
        "system": before,
        "text": ~visual & ~before,
        "instruction": behind,
        "valid": torch.ones_like(visual),
        "source": places,
        "image_ids": images,
        "slots": slots,
        "counts": counts,
        "original": counts,
        "transition": Transition(*(torch.randn(*images.shape, WIDTH, generator=draw) for _ in range(4))),
        "next_attention": Fixed(torch.rand(images.shape, generator=draw)),
    }
    return LayerView(layer, layers, **made | fields)


def image(count: int, system: int = 2, text: int = 3, batch: int = 1) -> Tensor:
    row = [-1] * system + [0] * count + [-1] * text
    return torch.tensor([row] * batch)


def one_cut(view: LayerView, observed: bool = True, budget: Any = None, **options: Any) -> LayerCut:
    pruner: Any = vistok.pruner("transprune", **({"observe": [0], "prune_after": [0], "ratios": [0.5]} | options))
    run = pruner.begin(replace(view, layer=-1), budget)
    view = replace(view, layer=0)
    if observed:
        run.observe(view)
    cut: LayerCut = run.prune(view)
    return cut


def transition(before: Tensor, after: Tensor) -> Tensor:
    """TTV of the released program for one sample [n, D], in float64."""
    before, after = before.double(), after.double()
    weights = torch.exp(1 - torch.cosine_similarity(before, after, dim=-1))
    return weights / weights.sum() * after.norm(dim=-1) / before.norm(dim=-1)


def test_scores_are_those_of_the_released_program() -> None:
    view = view_of(image(8))
    inside, outside, ffn_in, ffn_out = (part[0] for part in view.transition or ())
    ttv = (transition(inside, outside) + transition(ffn_in, ffn_out))[2:10]
    attention = view.next_attention.mean[0, 2:10].double()  # type: ignore[union-attr]
    expected = ttv / (ttv.sum() + 1e-8) + attention / (attention.sum() + 1e-8)
    cut = one_cut(view)
    assert cut.scores is not None
    torch.testing.assert_close(cut.scores[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert cut.index[0].tolist() == sorted(expected.argsort(descending=True)[:4].tolist())
    assert cut.lengths is not None and cut.lengths.tolist() == [4]


def test_the_paper_weighs_image_tokens_alone_by_the_absolute_cosine() -> None:
    view = view_of(image(8))
    scores = torch.zeros(8, dtype=torch.float64)
    for before, after in zip((view.transition or ())[::2], (view.transition or ())[1::2], strict=True):
        before, after = before[0, 2:10].double(), after[0, 2:10].double()
        weights = (1 - torch.cosine_similarity(before, after, dim=-1).abs()).softmax(-1)
        scores += weights * after.norm(dim=-1) / before.norm(dim=-1)
    cut = one_cut(view, variant="paper", alpha=1.0)
    assert cut.scores is not None
    torch.testing.assert_close(cut.scores[0].double(), 2 * scores / scores.sum(), rtol=1e-5, atol=1e-6)


def test_an_identity_moves_every_token_alike() -> None:
    view = view_of(image(6))
    same = view.hidden
    cut = one_cut(replace(view, transition=Transition(same, same, same, same)), alpha=1.0, ratios=[0.5])
    assert cut.scores is not None
    torch.testing.assert_close(cut.scores, torch.full((1, 6), 2 / 6))


def test_alpha_goes_from_attention_alone_to_transition_alone() -> None:
    view = view_of(image(8))
    attention = view.next_attention.mean[:, 2:10]  # type: ignore[union-attr]
    by_attention, by_transition = one_cut(view, alpha=0.0), one_cut(view, alpha=1.0)
    assert by_attention.scores is not None and by_transition.scores is not None
    torch.testing.assert_close(by_attention.scores, 2 * attention / attention.sum())
    both = one_cut(view, alpha=0.25)
    torch.testing.assert_close(both.scores, 0.75 * by_attention.scores + 0.25 * by_transition.scores)


def test_attention_is_asked_for_the_instruction_alone() -> None:
    view = view_of(torch.tensor([[-1, 0, 0, -1, 1, 1, -1, -1]]))
    one_cut(view)
    assert view.next_attention.rows.tolist() == [[False] * 6 + [True] * 2]  # type: ignore[union-attr]


def test_layers_add_up_and_dropped_tokens_are_forgotten() -> None:
    pruner: Any = vistok.pruner("transprune", observe=[0, 1], prune_after=[0, 1], ratios=[0.5, 0.25], alpha=1.0)
    first, second = view_of(image(8), layer=0, seed=1), view_of(image(8), layer=1, seed=2)
    run = pruner.begin(replace(first, layer=-1))
    run.observe(first)
    cut = run.prune(first)
    kept = torch.cat([torch.tensor([0, 1]), 2 + cut.index[0], torch.tensor([10, 11, 12])])
    short = view_of(image(4), layer=1, seed=2, original=first.original, source=kept[None])
    run.observe(short)
    again = run.prune(short)
    total = torch.zeros(8, dtype=torch.float64)
    for view, places in ((first, torch.arange(13)), (short, kept)):
        parts = view.transition or ()
        ttv = transition(parts[0][0], parts[1][0]) + transition(parts[2][0], parts[3][0])
        full = torch.zeros(13, dtype=torch.float64).scatter(0, places, ttv)
        total += full[2:10]
    left = total[cut.index[0]]
    torch.testing.assert_close(again.scores[0].double(), 2 * left / left.sum(), rtol=1e-5, atol=1e-6)
    # floor(0.25 * 8) of the original tokens, not of the four that were left.
    assert again.lengths.tolist() == [2] and second.counts.tolist() == [8]


def test_images_share_one_pool_or_have_their_own() -> None:
    images = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, -1]])
    attention = Fixed(torch.tensor([[0.0] * 5 + [0.1] * 6 + [0.0]]))
    view = view_of(images, next_attention=attention)
    assert one_cut(view, alpha=0.0).index.tolist() == [[4, 5, 6, 7, 8]]
    assert one_cut(view, alpha=0.0, scope="image").index.tolist() == [[0, 1, 4, 5, 6]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.floats(0.0, 1.0), st.integers(0, 5))
def test_a_cut_keeps_the_floor_of_its_ratio_in_order(count: int, ratio: float, seed: int) -> None:
    cut = one_cut(view_of(image(count), seed=seed), ratios=[ratio])
    assert cut.lengths is not None and cut.lengths.tolist() == [int(count * ratio)]
    kept = cut.index[0].tolist()
    assert kept == sorted(set(kept)) and all(0 <= place < count for place in kept)


def test_equal_scores_keep_the_lowest_places_and_nan_goes_first() -> None:
    view = view_of(image(6), next_attention=Fixed(torch.ones(1, 11)))
    assert one_cut(view, alpha=0.0).index.tolist() == [[0, 1, 2]]
    broken = [torch.where(torch.arange(11)[:, None] == 3, torch.nan, part) for part in view.transition or ()]
    poisoned = replace(view, transition=Transition(*broken), next_attention=Fixed(torch.ones(1, 11)))
    assert one_cut(poisoned, ratios=[0.99], scope="image").lengths is not None


def test_a_budget_is_the_mean_over_layers() -> None:
    pruner: Any = vistok.pruner("transprune", observe=[0], prune_after=[0, 1, 2], ratios=[0.75, 0.5, 0.25])
    run = pruner.begin(view_of(image(16)), 0.4)
    assert [run.ratios[layer].item() for layer in range(3)] == pytest.approx([0.3, 0.2, 0.1])
    with pytest.raises(ValueError, match="transprune: expected a budget of at least 0.250"):
        pruner.begin(view_of(image(16)), 0.2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "book"}, "variant"),
        ({"scope": "batch"}, "scope"),
        ({"alpha": 1.5}, "alpha"),
        ({"ratios": [0.5]}, "3 ratios"),
        ({"ratios": [0.25, 0.5, 0.75]}, "falling"),
        ({"ratios": [1.5, 0.5, 0.25]}, "falling"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vistok.pruner("transprune", **options)


def test_the_presets_are_the_papers_layers() -> None:
    high, low = vistok.pruner("transprune"), vistok.pruner("transprune_low")
    plan = high.plan.resolve(32)  # type: ignore[attr-defined]
    assert plan.observe == (6, 7, 8, 9, 10, 11) and plan.prune_after == (6, 8, 11)
    assert high.ratios == (0.875, 0.625, 0.125) and low.ratios == (0.5, 0.25, 0.0625)  # type: ignore[attr-defined]


@pytest.mark.parametrize("layers", [1, 2, 4, 8, 28, 32, 80])
def test_relative_depths_are_the_papers_layers_of_32_and_some_of_any_other_number(layers: int) -> None:
    pruner: Any = vistok.pruner("transprune_relative")
    plan = pruner.plan.resolve(32)
    assert plan.observe == (6, 7, 8, 9, 10, 11) and plan.prune_after == (6, 8, 11)
    if layers == 1:
        with pytest.raises(ValueError, match="layer"):
            pruner.plan.resolve(layers)
        return
    run = pruner.begin(view_of(image(16), layers=layers))
    assert tuple(run.ratios) == pruner.plan.resolve(layers).prune_after
    assert run.ratios[max(run.ratios)].item() == 0.125
