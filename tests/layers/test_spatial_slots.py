"""Slots in order from coarse to fine, each with the position code of its cell."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.layers.spatial_slots import position_codes, slot_cells


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 9), cols=st.integers(1, 9))
def test_every_cell_is_one_slot(rows: int, cols: int) -> None:
    cells = slot_cells(rows, cols)
    assert sorted(map(tuple, cells.tolist())) == [(y, x) for y in range(rows) for x in range(cols)]


def test_the_first_four_slots_are_in_the_four_quadrants() -> None:
    quadrants = (slot_cells(8, 8)[:4] >= 4).int().tolist()
    assert sorted(quadrants) == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_any_first_slots_cover_the_image_better_than_any_last_ones() -> None:
    cells = slot_cells(8, 8).float()
    every = torch.cartesian_prod(torch.arange(8.0), torch.arange(8.0))
    for count in (4, 8, 16, 32):
        first = torch.cdist(every, cells[:count]).amin(1).max()
        assert first < 8 * 1.5 / count**0.5


def test_codes_of_near_cells_are_more_alike_than_of_far_ones() -> None:
    codes = position_codes(torch.tensor([[0, 0], [0, 1], [0, 2], [7, 7]]), 32)
    likeness = codes @ codes[0]
    assert codes.shape == (4, 32) and (likeness.diff() < 0).all()
    with pytest.raises(ValueError, match="divisible by 4, got 30"):
        position_codes(torch.zeros(1, 2), 30)
