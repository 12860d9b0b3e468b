"""Ids are checked before a codebook is read with them."""

import pytest
import torch

from vistok.ops.check_ids import check_ids


def test_ids_of_the_codebook_and_minus_one_pass() -> None:
    check_ids("test", torch.tensor([-1, 0, 4]), 5)
    check_ids("test", torch.zeros(0, dtype=torch.int64), 5)


@pytest.mark.parametrize("wrong", [-2, 5])
def test_other_ids_are_refused(wrong: int) -> None:
    with pytest.raises(ValueError, match=r"mine: expected ids in 0..4"):
        check_ids("mine", torch.tensor([0, wrong]), 5)


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match="mine: expected int64 ids, got torch.int32"):
        check_ids("mine", torch.zeros(2, dtype=torch.int32), 5)
