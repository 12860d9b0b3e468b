from itertools import pairwise

import pytest

from vistok.data.scenes import SPLITS, seeds_of, split_of


def test_no_seed_is_in_two_splits_and_none_between_them():
    ranges = [seeds_of(split) for split in SPLITS]
    assert ranges[0].start == 0
    assert all(first.stop == second.start for first, second in pairwise(ranges))
    for split, seeds in zip(SPLITS, ranges, strict=True):
        assert {split_of(seed) for seed in (seeds[0], seeds[1], seeds[-1])} == {split}


def test_a_split_that_is_not_there_is_an_error_that_names_those_that_are():
    with pytest.raises(ValueError, match="expected one of train, validation, test, heldout, got 'dev'"):
        seeds_of("dev")


@pytest.mark.parametrize("seed", [-1, 4 * 2**32])
def test_a_seed_of_no_split_is_an_error(seed):
    with pytest.raises(ValueError, match=f"expected 0 <= seed < 17179869184, got {seed}"):
        split_of(seed)
