"""Words and codes described by the words they go together with."""

import math

import pytest
import torch

from vistok.lvlm.association import association


def test_by_hand():
    pairs = [
        (torch.tensor([5, 8]), torch.tensor([0, 1])),
        (torch.tensor([5, 9, 9]), torch.tensor([1, 1])),
        (torch.tensor([8, 100]), torch.tensor([0])),
        (torch.tensor([9]), torch.tensor([1, 2])),
    ]
    words, codes = association(pairs, torch.tensor([5, 8, 9]), 4)
    two = math.log(2)
    expected_words = [[two, 0, 0], [0, two, 0], [0, 0, two]]
    assert torch.allclose(words, torch.tensor(expected_words, dtype=torch.float64))
    expected = [[0, two, 0], [math.log(2 / 1.5), 0, math.log(2 / 1.5)], [0, 0, two], [0, 0, 0]]
    assert torch.allclose(codes, torch.tensor(expected, dtype=torch.float64))


def test_a_word_that_is_always_there_says_nothing():
    pairs = [(torch.tensor([3, 4 + place % 2]), torch.tensor([place % 2])) for place in range(6)]
    words, codes = association(pairs, torch.tensor([3, 4, 5]), 2)
    assert not words[0].any() and not codes[:, 0].any() and codes[0, 1] > 0


def test_codes_out_of_range_and_no_pairs_are_named():
    with pytest.raises(ValueError, match=r"codes in 0\.\.1, got 0\.\.2"):
        association([(torch.tensor([3]), torch.tensor([0, 2]))], torch.tensor([3]), 2)
    with pytest.raises(ValueError, match="got none"):
        association([], torch.tensor([3]), 2)


def test_results_are_made_where_the_words_are():
    pairs, words = (
        [(torch.tensor([3]), torch.tensor([0])), (torch.tensor([4]), torch.tensor([1]))],
        torch.tensor([3, 4]),
    )
    expected = association(pairs, words, 2)
    with torch.device("meta"):  # stands for any other default
        found = association(pairs, words, 2)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
