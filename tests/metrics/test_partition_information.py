"""Mutual information of partitions: worked out by hand, by enumeration, and with clusters too many for the items."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from vistok.metrics.partition_information import (
    adjusted_mutual_information,
    contingency,
    entropy,
    expected_mutual_information,
    label_information,
    miller_madow,
    mutual_information,
)


def test_information_of_four_items_by_hand() -> None:
    codes = torch.tensor([7, 7, 9, 9])
    assert mutual_information(contingency(codes, torch.tensor([0, 0, 1, 1]))) == pytest.approx(1)
    assert mutual_information(contingency(codes, torch.tensor([0, 1, 0, 1]))) == pytest.approx(0)
    table = contingency(codes, torch.tensor([0, 1, 1, 1]))
    assert table.tolist() == [[1, 1], [0, 2]]
    # H(C) = 1, H(Y) = 2 - 3/4 log2 3, H(C,Y) = 3/2; two, two and three values seen.
    assert mutual_information(table) == pytest.approx(1.5 - 0.75 * math.log2(3))
    assert miller_madow(table) == pytest.approx(1.5 - 0.75 * math.log2(3) + (1 + 1 - 2) / (8 * math.log(2)))
    assert entropy(torch.tensor([0, 4])) == 0


def test_millers_correction_takes_away_a_bit_count_by_hand() -> None:
    table = torch.eye(4, dtype=torch.int64)  # four items, each alone: 2 bits of which (3 + 3 - 3) / (8 ln 2) are chance
    assert miller_madow(table) == pytest.approx(2 + 3 / (8 * math.log(2)))
    spread = torch.ones(2, 2, dtype=torch.int64)  # nothing told, and four pairs seen
    assert miller_madow(spread) == pytest.approx((1 + 1 - 3) / (8 * math.log(2)))


@pytest.mark.parametrize(
    ("codes", "labels"), [([0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 1, 1]), ([0, 0, 0, 0, 1, 2], [0, 1, 1, 1, 1, 2])]
)
def test_expected_information_is_the_mean_over_all_orders(codes: list[int], labels: list[int]) -> None:
    first = torch.tensor(codes)
    every = [mutual_information(contingency(first, torch.tensor(order))) for order in permutations(labels)]
    table = contingency(first, torch.tensor(labels))
    assert expected_mutual_information(table) == pytest.approx(sum(every) / len(every))
    largest = (entropy(table.sum(0)) + entropy(table.sum(1))) / 2
    mean = sum(every) / len(every)
    assert adjusted_mutual_information(table) == pytest.approx((mutual_information(table) - mean) / (largest - mean))


def test_codes_that_know_nothing_look_informed_only_before_correction() -> None:
    draw = torch.Generator().manual_seed(0)
    codes, labels = torch.randint(200, (600,), generator=draw), torch.randint(6, (600,), generator=draw)
    found = label_information(codes, labels)
    assert found.plug_in > 0.8 and abs(found.above_shuffled) < 0.1 and abs(found.adjusted) < 0.03
    same = label_information(labels, labels)
    assert same.adjusted == pytest.approx(1) and same.plug_in == pytest.approx(same.classes)
    assert same.above_shuffled == pytest.approx(same.classes, abs=0.1)


def test_groups_are_shuffled_whole_so_that_naming_the_group_is_no_knowledge_of_its_label() -> None:
    groups = torch.arange(40).repeat_interleave(5)
    labels = (torch.arange(40) % 4).repeat_interleave(5)
    whole = label_information(groups, labels, groups)
    assert whole.plug_in == pytest.approx(2) and whole.above_shuffled == pytest.approx(0, abs=1e-9)
    assert label_information(groups, labels).above_shuffled > 0.5


@pytest.mark.parametrize(
    ("codes", "labels", "groups", "words"),
    [
        (torch.zeros(0).long(), torch.zeros(0).long(), None, "n >= 1"),
        (torch.zeros(3).long(), torch.zeros(2).long(), None, "same n"),
        (torch.zeros(2).long(), torch.tensor([0, 1]), torch.tensor([5, 5]), "one label for all items of a group"),
    ],
)
def test_what_does_not_belong_together_is_refused(
    codes: Tensor, labels: Tensor, groups: Tensor | None, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        label_information(codes, labels, groups)
