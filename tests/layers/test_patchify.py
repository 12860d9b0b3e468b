import pytest
import torch

from vistok.layers.mingtok_stages import spread
from vistok.layers.patchify import patchify, unpatchify


def test_a_patch_is_row_column_channel_and_comes_back(generator: torch.Generator) -> None:
    images = torch.randn(2, 3, 8, 12, generator=generator)
    rows = patchify(images, 4)
    assert rows.shape == (2, 6, 48)
    patch = images[1, :, 4:8, 4:8]  # second row, second column of 2 x 3
    assert torch.equal(rows[1, 4], patch.permute(1, 2, 0).flatten())
    assert torch.equal(unpatchify(rows, (2, 3)), images)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="multiples of patch=4, got 8x10"):
        patchify(torch.zeros(1, 3, 8, 10), 4)
    with pytest.raises(ValueError, match=r"\[B, 6, 3 p\^2\]"):
        unpatchify(torch.zeros(1, 5, 48), (2, 3))


def test_a_token_spreads_into_its_own_square() -> None:
    values = torch.arange(6.0)[:, None] * 10 + torch.arange(4)  # token t holds 10 t + (2 row + column)
    out = spread(values[None], (2, 3), 2)[0, :, 0].reshape(4, 6)
    assert out.tolist() == [
        [0, 1, 10, 11, 20, 21],
        [2, 3, 12, 13, 22, 23],
        [30, 31, 40, 41, 50, 51],
        [32, 33, 42, 43, 52, 53],
    ]
