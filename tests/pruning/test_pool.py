"""Cells of equal size in two directions: torch's own adaptive pooling where that is defined without overlap."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import adaptive_avg_pool2d

from vistok.pruning.pool import Pool
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

POOL = Pool()


def grid(rows: int, cols: int, *, batch: int = 2, width: int = 3, coords: bool = True) -> TokenTensor:
    draw = torch.Generator().manual_seed(rows * 100 + cols)
    return TokenTensor(
        TokenSpec("toy", dim=width),
        embeds=torch.randn(batch, rows * cols, width, generator=draw),
        coords=grid_coords(rows, cols, batch) if coords else None,
    )


@pytest.mark.parametrize(("rows", "cols", "to"), [(12, 12, (6, 6)), (12, 12, (3, 3)), (4, 8, (2, 4)), (6, 6, (1, 1))])
def test_where_cells_divide_the_grid_it_is_adaptive_average_pooling(rows: int, cols: int, to: tuple[int, int]) -> None:
    tokens = grid(rows, cols)
    assert tokens.embeds is not None
    pooled = POOL.reduce(tokens, to[0] * to[1]).check()
    expected = adaptive_avg_pool2d(tokens.embeds.mT.unflatten(2, (rows, cols)), to).flatten(2).mT
    assert pooled.embeds is not None
    torch.testing.assert_close(pooled.embeds, expected)
    assert pooled.sizes is not None and (pooled.sizes == rows * cols // (to[0] * to[1])).all()


def test_a_quarter_of_a_4_by_4_grid_by_hand() -> None:
    tokens = grid(4, 4, batch=1, width=1).replace(embeds=torch.arange(16.0).reshape(1, 16, 1))
    pooled = POOL.reduce(tokens, 4)
    assert pooled.embeds is not None and pooled.source is not None and pooled.coords is not None
    assert pooled.embeds.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert pooled.source.tolist() == [[0, 2, 8, 10]] and pooled.coords.tolist() == [[[0, 0], [0, 2], [2, 0], [2, 2]]]


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_every_token_counts_once_in_cells_that_differ_by_one_at_most(rows: int, cols: int, data: Any) -> None:
    count = data.draw(st.integers(1, rows * cols))
    tokens = grid(rows, cols, batch=1)
    pooled = POOL.reduce(tokens, count).check()
    assert pooled.sizes is not None and pooled.source is not None
    assert pooled.embeds is not None and tokens.embeds is not None
    assert pooled.sizes.sum() == rows * cols and pooled.sizes.max() - pooled.sizes.min() <= 1
    assert pooled.source[0].tolist() == POOL.select(tokens, count).index[0].tolist()
    total = (pooled.embeds * pooled.sizes[..., None]).sum(1)
    torch.testing.assert_close(total, tokens.embeds.sum(1), atol=1e-4, rtol=1e-4)


def test_kept_tokens_are_spread_over_both_directions() -> None:
    for budget in (0.5, 0.25, 0.1):
        kept = torch.zeros(144).scatter(0, POOL.select(grid(12, 12, batch=1), budget).index[0], 1)
        quadrants = kept.reshape(2, 6, 2, 6).sum((1, 3))
        assert quadrants.max() - quadrants.min() <= 2


def test_without_coords_the_grid_of_the_spec_or_a_square_is_taken() -> None:
    known, square = grid(4, 9), grid(6, 6)
    bare = known.replace(coords=None, spec=TokenSpec("toy", dim=3, grid=(4, 9)))
    assert torch.equal(POOL.select(bare, 9).index, POOL.select(known, 9).index)
    assert torch.equal(POOL.select(square.replace(coords=None), 9).index, POOL.select(square, 9).index)
    assert not torch.equal(POOL.select(known.replace(coords=None), 9).index, POOL.select(known, 9).index)


def test_only_what_coords_say_matters_not_where_they_begin() -> None:
    tokens = grid(4, 6)
    assert tokens.coords is not None
    moved = tokens.replace(coords=tokens.coords + torch.tensor([5, -3], dtype=torch.int32))
    assert torch.equal(POOL.select(tokens, 6).index, POOL.select(moved, 6).index)


@pytest.mark.parametrize("name", ["ragged", "no_square", "three_axes", "another_grid"])
def test_tokens_of_no_known_grid_are_refused(name: str) -> None:
    bare = grid(4, 4, coords=False)
    assert bare.embeds is not None
    cases = {
        "ragged": bare.replace(lengths=torch.tensor([16, 9])),
        "no_square": bare.truncate(15),
        "three_axes": bare.replace(coords=torch.zeros(2, 16, 3, dtype=torch.int32)),
        "another_grid": bare.replace(spec=TokenSpec("toy", dim=3, grid=(5, 5))),
    }
    with pytest.raises(ValueError, match=r"pool: expected (tokens with coords|coords of 2 axes)"):
        POOL.select(cases[name], 4)
