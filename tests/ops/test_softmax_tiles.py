"""Sums of exponentials over tiles equal those over all at once."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.ops.softmax_tiles import CODES, ROWS, OnlineSoftmax, code_tiles, row_tiles


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 40), st.integers(1, 15), st.sampled_from([1.0, 1e3]), st.integers(0, 99))
def test_tiles_in_turn_give_the_logsumexp_of_all(rows: int, codes: int, width: int, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(rows, codes, generator=generator, dtype=torch.float64)
    softmax = OnlineSoftmax(logits)
    for tile in logits.split(width, dim=1):
        weights, old, new = softmax.add(tile)
        assert bool((new >= old).all()) and bool((weights <= 1).all())
    torch.testing.assert_close(softmax.peak + softmax.total.log(), logits.logsumexp(1, keepdim=True))


def test_slices_cover_everything_once_and_none_is_too_long() -> None:
    for tiles, most in ((row_tiles, ROWS), (code_tiles, CODES)):
        for count in (0, 1, most, most + 1, 3 * most - 1):
            found = [place for tile in tiles(count) for place in range(tile.start, tile.stop)]
            assert found == list(range(count))
            assert all(tile.stop - tile.start <= most for tile in tiles(count))
