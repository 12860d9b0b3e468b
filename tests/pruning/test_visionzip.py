"""Dominant and contextual tokens by hand, and against loops over the formula."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import vistok
from vistok.tokens import TokenSpec, TokenTensor

# Attention that takes slots 7, 2, 4 first; keys of two kinds.
ATTENTION = torch.tensor([[0.01, 0.02, 0.20, 0.03, 0.15, 0.04, 0.05, 0.30, 0.06, 0.07]])
KEYS = torch.eye(2)[torch.tensor([[0, 1, 0, 1, 0, 0, 1, 1, 0, 1]])]
EMBEDS = torch.arange(10.0).reshape(1, 10, 1)
CLASS = torch.tensor([[[100.0]]])


def tokens_of(embeds: Tensor, **fields: Tensor) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=embeds, **fields)


def pruner(**settings: Any) -> Any:
    return vistok.pruner("visionzip", **settings)


def context(**changes: Any) -> dict[str, Any]:
    return {"attention": ATTENTION, "tower_keys": KEYS, "class_token": CLASS} | changes


def test_five_of_ten_tokens_by_hand() -> None:
    # c = 2; dominant are the class token, 7 and 2. The rest 0 1 3 4 5 6 8 9 has its targets at places 0 and 4: slots 0
    # and 5, both of key 0. The others join 0, the lower one of equals, except that keys of kind 1 are as far from both.
    reduced = pruner(contextual=0.4).reduce(tokens_of(EMBEDS), 5, **context()).check()
    assert reduced.source.tolist() == [[0, 1, 2, 5, 7]]
    joined = (1 + 3 + 4 + 6 + 8 + 9) / 6
    torch.testing.assert_close(reduced.embeds.flatten(), torch.tensor([0 + joined, 100, 2, 5, 7]))
    assert reduced.sizes.tolist() == [[7, 1, 1, 1, 1]]


def test_each_joins_the_target_of_nearest_key() -> None:
    keys = KEYS.clone()
    keys[0, 5] = torch.tensor([0.1, 5.0])
    reduced = pruner(contextual=0.4).reduce(tokens_of(EMBEDS), 5, **context(tower_keys=keys))
    expected = [0 + (4 + 8) / 2, 100, 2, 5 + (1 + 3 + 6 + 9) / 4, 7]
    torch.testing.assert_close(reduced.embeds.flatten(), torch.tensor(expected))
    assert reduced.sizes.tolist() == [[3, 1, 1, 5, 1]]


def test_without_a_class_token_one_patch_more_is_dominant() -> None:
    reduced = pruner(contextual=0.4).reduce(tokens_of(EMBEDS), 5, **context(class_token=None))
    # The rest 0 1 3 5 6 8 9 has its targets at places 0 and 3.
    assert reduced.source.tolist() == [[0, 2, 4, 5, 7]]
    assert reduced.source.tolist() == pruner(contextual=0.4).select(tokens_of(EMBEDS), 5, **context()).index.tolist()


def test_the_class_token_takes_the_lowest_place_that_nothing_else_holds() -> None:
    attention = torch.tensor([[0.9, 0.8, 0.1, 0.7, 0.2, 0.3, 0.1, 0.1, 0.1, 0.1]])
    reduced = pruner(contextual=0).reduce(tokens_of(EMBEDS), 4, **context(attention=attention))
    assert reduced.source.tolist() == [[0, 1, 2, 3]]
    assert reduced.embeds.flatten().tolist() == [0, 1, 100, 3]
    assert reduced.sizes.tolist() == [[1, 1, 1, 1]]


def test_a_budget_of_one_is_the_class_token_and_of_everything_the_identity() -> None:
    assert pruner().reduce(tokens_of(EMBEDS), 1, **context()).embeds.tolist() == [[[100.0]]]
    assert torch.equal(pruner().reduce(tokens_of(EMBEDS), 10, **context()).embeds, EMBEDS)


@pytest.mark.parametrize(("budget", "contextual"), [(64, 10), (128, 20), (192, 30)])
def test_the_default_share_is_that_of_the_published_configurations(budget: int, contextual: int) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = tokens_of(torch.randn(1, 576, 8, generator=draw))
    attention, keys = torch.rand(1, 576, generator=draw), torch.randn(1, 576, 4, generator=draw)
    reduced = pruner().reduce(
        tokens, budget, **context(attention=attention, tower_keys=keys, class_token=CLASS.expand(1, 1, 8))
    )
    assert int((reduced.sizes > 1).sum()) == contextual
    dominant = attention[0].argsort(descending=True)[: budget - contextual - 1]
    assert set(dominant.tolist()) <= set(reduced.source[0].tolist())


def by_loops(x: Tensor, keys: Tensor, attention: Tensor, dominant: int, contextual: int) -> dict[int, Tensor]:
    """Place to value, in float64, without class token."""
    order = sorted(range(len(x)), key=lambda slot: -float(attention[slot]))
    kept = {slot: x[slot] for slot in order[:dominant]}
    rest = sorted(order[dominant:])
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    unit = normalize(keys, dim=1)
    members: dict[int, list[Tensor]] = {slot: [] for slot in targets}
    for slot in rest:
        if slot not in targets:
            members[max(targets, key=lambda one: float(unit[one] @ unit[slot]))].append(x[slot])
    for slot, own in members.items():
        kept[slot] = x[slot] + (torch.stack(own).mean(0) if own else 0)
    return kept


def test_a_ragged_batch_equals_loops_over_the_formula() -> None:
    draw = torch.Generator().manual_seed(1)
    x, keys = torch.randn(3, 40, 6, generator=draw), torch.randn(3, 40, 5, generator=draw)
    attention, lengths = torch.rand(3, 40, generator=draw), torch.tensor([40, 23, 9])
    given = {"attention": attention, "tower_keys": keys, "class_token": None}
    reduced = pruner(contextual=0.25).reduce(tokens_of(x, lengths=lengths), 8, **given)
    for row, length in enumerate(lengths.tolist()):
        cut = [value[row, :length].double() for value in (x, keys, attention)]
        expected = by_loops(*cut, dominant=6, contextual=2)
        assert reduced.source[row].tolist() == sorted(expected)
        torch.testing.assert_close(reduced.embeds[row].double(), torch.stack([expected[s] for s in sorted(expected)]))


def test_means_are_weighted_by_what_tokens_already_stand_for() -> None:
    sizes = torch.ones(1, 10)
    sizes[0, 9] = 5
    reduced = pruner(contextual=0.4).reduce(tokens_of(EMBEDS, sizes=sizes), 5, **context())
    assert reduced.embeds[0, 0].item() == pytest.approx((1 + 3 + 4 + 6 + 8 + 5 * 9) / 10)
    assert reduced.sizes.tolist() == [[11, 1, 1, 1, 1]]


def test_gradients_reach_members_and_the_class_token() -> None:
    x, cls = EMBEDS.clone().requires_grad_(), CLASS.clone().requires_grad_()
    pruner(contextual=0.4).reduce(tokens_of(x), 5, **context(class_token=cls)).embeds.sum().backward()
    sixth = 1 / 6
    expected = [1, sixth, 1, sixth, sixth, 1, sixth, 1, sixth, sixth]
    torch.testing.assert_close(x.grad.flatten(), torch.tensor(expected))
    assert cls.grad.item() == 1


def test_the_host_is_told_the_layer_and_the_space() -> None:
    assert (pruner().tower_layer, pruner().space) == (-2, "tower")


def test_wrong_context_and_settings_are_named() -> None:
    tokens = tokens_of(EMBEDS)
    for name, value in (("attention", None), ("tower_keys", None), ("class_token", torch.zeros(1, 10, 1))):
        with pytest.raises(ValueError, match=f"visionzip: expected {name} "):
            pruner().reduce(tokens, 3, **context(**{name: value}))
    with pytest.raises(ValueError, match=r"expected contextual in \[0, 1\), got 1.0"):
        pruner(contextual=1.0)
