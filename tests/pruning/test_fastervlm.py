"""The tokens with most attention, by hand and against a plain sort."""

import pytest
import torch
from torch import Tensor

import vistok
from vistok.tokens import TokenSpec, TokenTensor


def tokens_of(batch: int, slots: int, **fields: Tensor) -> TokenTensor:
    return TokenTensor(TokenSpec("toy"), embeds=torch.zeros(batch, slots, 2), **fields)


def pick(attention: list[float], budget: int) -> list[int]:
    given = torch.tensor([attention])
    chosen: list[int] = (
        vistok.pruner("fastervlm").select(tokens_of(1, len(attention)), budget, attention=given).index[0].tolist()
    )
    return chosen


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(1, [3]), (2, [1, 3]), (3, [1, 3, 4]), (4, [0, 1, 3, 4]), (5, [0, 1, 2, 3, 4])],
)
def test_the_tokens_with_most_attention_stay_in_their_order(budget: int, expected: list[int]) -> None:
    assert pick([0.1, 0.3, 0.0, 0.4, 0.2], budget) == expected


def test_equal_attention_goes_to_the_front_and_nan_is_taken_last() -> None:
    assert pick([0.2, 0.2, 0.2, 0.2], 2) == [0, 1]
    assert pick([torch.nan, 0.1, torch.nan, 0.0], 3) == [0, 1, 3]


def test_it_agrees_with_a_sort_and_hands_its_scores_on() -> None:
    attention = torch.rand(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = tokens_of(3, 40)
    pruned = tokens.select(vistok.pruner("fastervlm").select(tokens, 9, attention=attention))
    assert pruned.source is not None and pruned.scores is not None
    for row, found, scores in zip(attention.tolist(), pruned.source.tolist(), pruned.scores, strict=True):
        expected = sorted(sorted(range(40), key=lambda slot, row=row: -row[slot])[:9])
        assert found == expected
        torch.testing.assert_close(scores, torch.tensor([row[slot] for slot in expected]))


def test_attention_in_padding_does_not_matter() -> None:
    attention = torch.tensor([[0.1, 0.3, torch.nan, 9.0], [0.1, 0.2, 0.4, torch.inf]])
    tokens = tokens_of(2, 4, lengths=torch.tensor([2, 3]))
    selection = vistok.pruner("fastervlm").select(tokens, 1, attention=attention)
    assert selection.index.tolist() == [[1], [2]]


def test_the_host_is_told_which_layer_the_attention_is_of() -> None:
    assert vistok.pruner("fastervlm").tower_layer == -2


def test_missing_or_misshapen_attention_is_named() -> None:
    pruner, tokens = vistok.pruner("fastervlm"), tokens_of(2, 4)
    with pytest.raises(ValueError, match=r"fastervlm: expected attention \[2, 4\], got none"):
        pruner.select(tokens, 2)
    with pytest.raises(ValueError, match=r"fastervlm: expected attention \[2, 4\] for these tokens, got \[2, 5\]"):
        pruner.select(tokens, 2, attention=torch.zeros(2, 5))
