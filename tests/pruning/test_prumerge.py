"""PruMerge by hand, against loops over the formula, and the outliers against NumPy's percentiles."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import normalize

import vistok
from vistok.pruning.prumerge import evenly, outlier_counts
from vistok.tokens import TokenSpec, TokenTensor

ATTENTION = torch.tensor([[0.1, 0.4, 0.05, 0.25, 0.2]])
EMBEDS = torch.tensor([[[1.0], [10.0], [100.0], [1000.0], [10000.0]]])
# On a circle in degrees: 0, 10, 30, 60, 100.
ANGLES = torch.tensor([[0.0, 10.0, 30.0, 60.0, 100.0]]).deg2rad()
KEYS = torch.stack([ANGLES.cos(), ANGLES.sin()], 2)


def tokens_of(embeds: Tensor, **fields: Tensor) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=embeds, **fields)


def reduce(budget: Any, tokens: TokenTensor | None = None, **setting: Any) -> TokenTensor:
    pruner: Any = vistok.pruner("prumerge", **setting)
    given = tokens_of(EMBEDS) if tokens is None else tokens
    reduced: TokenTensor = pruner.reduce(given, budget, attention=ATTENTION, tower_keys=KEYS)
    return reduced


def test_three_of_five_tokens_by_hand() -> None:
    # 1 and 3 stay, each with its two neighbours: 0 and 2; 2 and 4 (40 degrees, 1 is 50 away). 0, 2, 4 are summed up.
    reduced = reduce(3, neighbours=2).check()
    assert reduced.source is not None and reduced.embeds is not None and reduced.sizes is not None
    assert reduced.source.tolist() == [[1, 3, 4]]
    expected = [10 + 0.1 * 1 + 0.05 * 100, 1000 + 0.05 * 100 + 0.2 * 10000, 0.1 * 1 + 0.05 * 100 + 0.2 * 10000]
    torch.testing.assert_close(reduced.embeds.flatten(), torch.tensor(expected))
    assert reduced.sizes.tolist() == [[1, 1, 3]]


def test_neighbours_may_be_kept_tokens_and_are_all_others_where_there_are_few() -> None:
    reduced = reduce(3)
    assert reduced.embeds is not None
    everything = 0.1 * 1 + 0.4 * 10 + 0.05 * 100 + 0.25 * 1000 + 0.2 * 10000
    assert reduced.embeds[0, 0].item() == pytest.approx(10 + everything - 0.4 * 10)
    assert reduced.embeds[0, 1].item() == pytest.approx(1000 + everything - 0.25 * 1000)


def test_a_budget_of_one_keeps_a_token_and_of_everything_changes_none() -> None:
    one, everything = reduce(1, neighbours=1), reduce(5)
    assert one.embeds is not None and everything.embeds is not None
    assert one.source is not None and one.source.tolist() == [[1]]
    assert one.embeds.item() == pytest.approx(10 + 0.1 * 1)
    assert torch.equal(everything.embeds, EMBEDS)


def test_what_reduce_leaves_stands_where_select_says() -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = tokens_of(torch.randn(2, 50, 4, generator=draw), lengths=torch.tensor([50, 31]))
    given = {"attention": torch.rand(2, 50, generator=draw), "tower_keys": torch.randn(2, 50, 3, generator=draw)}
    for name in ("prumerge", "prumerge_plus"):
        pruner: Any = vistok.pruner(name)
        for budget in (1, 2, 9, 0.5, torch.tensor([3, 40])):
            reduced, chosen = pruner.reduce(tokens, budget, **given), pruner.select(tokens, budget, **given)
            assert torch.equal(reduced.source, chosen.index)
            if reduced.valid_lengths.min() > 1:  # then a token stands for what is pruned
                assert reduced.sizes[reduced.mask].sum() == 81


def by_loops(x: Tensor, keys: Tensor, attention: Tensor, budget: int, neighbours: int) -> dict[int, Tensor]:
    """Place to value, in float64."""
    order = sorted(range(len(x)), key=lambda slot: -float(attention[slot]))
    kept, pruned = order[: budget - 1], order[budget - 1 :]
    unit = normalize(keys, dim=1)
    result = {}
    for slot in kept:
        others = [j for j in range(len(x)) if j != slot]
        near = sorted(others, key=lambda j: -float(unit[slot] @ unit[j]))[:neighbours]
        result[slot] = x[slot] + sum(attention[j] * x[j] for j in near)
    result[pruned[0]] = torch.stack([attention[j] * x[j] for j in pruned]).sum(0)
    return result


def test_a_ragged_batch_equals_loops_over_the_formula() -> None:
    draw = torch.Generator().manual_seed(1)
    x, keys = torch.randn(3, 60, 6, generator=draw), torch.randn(3, 60, 5, generator=draw)
    attention, lengths = torch.rand(3, 60, generator=draw), torch.tensor([60, 35, 12])
    pruner: Any = vistok.pruner("prumerge")
    reduced = pruner.reduce(tokens_of(x, lengths=lengths), 9, attention=attention, tower_keys=keys)
    for row, length in enumerate(lengths.tolist()):
        cut = [value[row, :length].double() for value in (x, keys, attention)]
        expected = by_loops(*cut, budget=9, neighbours=32)
        assert reduced.source[row].tolist() == sorted(expected)
        torch.testing.assert_close(
            reduced.embeds[row].double(), torch.stack([expected[s] for s in sorted(expected)]), atol=1e-4, rtol=1e-4
        )


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 40), st.data())
def test_samples_lie_evenly_over_what_is_left(slots: int, data: Any) -> None:
    rest = torch.tensor([data.draw(st.lists(st.booleans(), min_size=slots, max_size=slots))], dtype=torch.bool)
    places = rest[0].nonzero()[:, 0].tolist()
    count = data.draw(st.integers(0, len(places)))
    expected = [places[(2 * i + 1) * len(places) // (2 * count)] for i in range(count)]
    assert evenly(rest.reshape(1, slots), torch.tensor([count]))[0].nonzero()[:, 0].tolist() == expected


def test_plus_keeps_a_quarter_by_attention_and_samples_the_others() -> None:
    attention = torch.rand(1, 100, generator=torch.Generator().manual_seed(2))
    tokens, keys = tokens_of(torch.zeros(1, 100, 2)), torch.ones(1, 100, 2)
    index = vistok.pruner("prumerge_plus").select(tokens, 21, attention=attention, tower_keys=keys).index[0].tolist()
    order = attention[0].argsort(descending=True).tolist()
    rest = sorted(order[5:])
    samples = [rest[(2 * i + 1) * 95 // 30] for i in range(15)]
    extra = next(slot for slot in order if slot not in order[:5] + samples)
    assert index == sorted(order[:5] + samples + [extra])


@pytest.mark.parametrize("seed", range(5))
def test_outliers_are_those_beyond_numpys_quartiles(seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    attention = torch.randn(4, 90, generator=draw).mul(2).softmax(1)
    lengths = torch.tensor([90, 41, 3, 1])
    valid = torch.arange(90) < lengths[:, None]
    for row, (found, fourfold, length) in enumerate(
        zip(outlier_counts(attention, valid), outlier_counts(attention, valid, 0.75), lengths, strict=True)
    ):
        values = attention[row, :length].double().numpy()
        low, high = np.percentile(values, 25), np.percentile(values, 75)
        outliers = int((values > high + 1.5 * (high - low)).sum())
        assert found == min(outliers + 1, length) and fourfold == min(4 * outliers + 1, length)


def test_the_outlier_budget_keeps_every_outlier_of_each_item() -> None:
    attention = torch.full((2, 40), 0.01) + torch.linspace(0, 1e-3, 40)
    attention[0, [3, 17, 30]] = 0.3
    attention[1, 5] = 0.5
    tokens = tokens_of(torch.ones(2, 40, 2))
    budget = outlier_counts(attention, tokens.mask)
    assert budget.tolist() == [4, 2]
    selection = vistok.pruner("prumerge").select(tokens, budget, attention=attention, tower_keys=torch.ones(2, 40, 2))
    assert selection.index[0, :4].tolist() == [3, 17, 30, 39] and selection.index[1, :2].tolist() == [5, 39]
    nothing = torch.zeros(2, 0)
    assert outlier_counts(nothing, nothing.bool()).tolist() == [0, 0]


def test_gradients_are_one_and_the_shares() -> None:
    x = EMBEDS.clone().requires_grad_()
    reduced = reduce(3, tokens_of(x), neighbours=2)
    assert reduced.embeds is not None
    reduced.embeds.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad.flatten(), torch.tensor([0.2, 1.0, 0.15, 1.0, 0.4]))


def test_the_host_is_told_the_layer_and_the_space() -> None:
    pruner: Any = vistok.pruner("prumerge", tower_layer=-2)
    assert (pruner.tower_layer, pruner.space) == (-2, "tower")


def test_wrong_context_and_settings_are_named() -> None:
    pruner: Any = vistok.pruner("prumerge")
    with pytest.raises(ValueError, match=r"prumerge: expected attention \[1, 5\], got none"):
        pruner.select(tokens_of(EMBEDS), 3, tower_keys=KEYS)
    with pytest.raises(
        ValueError, match=r"prumerge: expected tower_keys \[1, 5, Dk\] for these tokens, got \[1, 4, 2\]"
    ):
        pruner.reduce(tokens_of(EMBEDS), 3, attention=ATTENTION, tower_keys=KEYS[:, :4])
    with pytest.raises(ValueError, match=r"expected spread in \[0, 1\), got 1.0"):
        vistok.pruner("prumerge", spread=1.0)
    with pytest.raises(ValueError, match="expected neighbours >= 0, got -1"):
        vistok.pruner("prumerge", neighbours=-1)
