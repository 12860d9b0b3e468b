"""Gathering valid vectors and putting results back."""

import pytest
import torch

from vistok.ops.valid_rows import padded, valid_rows


def test_rows_come_back_where_they_were_and_padding_is_filled() -> None:
    x = torch.tensor([[[1.0], [2.0]], [[3.0], [float("nan")]]])
    mask = torch.tensor([[True, True], [True, False]])
    rows = valid_rows("test", x, 1, mask)
    assert rows.tolist() == [[1.0], [2.0], [3.0]]
    assert padded(rows, (2, 2), mask, fill=-1).tolist() == [[[1.0], [2.0]], [[3.0], [-1.0]]]
    assert padded(torch.tensor([7, 8, 9]), (2, 2), mask, fill=-1).tolist() == [[7, 8], [9, -1]]


def test_without_a_mask_every_vector_is_valid() -> None:
    x = torch.arange(12.0).reshape(2, 3, 2)
    assert torch.equal(padded(valid_rows("test", x, 2), (2, 3)), x)


def test_mistakes_name_the_owner() -> None:
    with pytest.raises(ValueError, match=r"mine: expected float vectors \[..., 3\], got \[2, 4\]"):
        valid_rows("mine", torch.zeros(2, 4), 3)
    with pytest.raises(ValueError, match=r"mine: expected float vectors .* torch.int64"):
        valid_rows("mine", torch.zeros(2, 3, dtype=torch.int64), 3)
    with pytest.raises(ValueError, match=r"mine: expected a bool mask \[2\]"):
        valid_rows("mine", torch.zeros(2, 3), 3, torch.ones(2))
