"""One id has one colour; cells lie where their tokens do."""

import base64
import io

import numpy as np
from PIL import Image

from vistok.report.token_map import id_colors, token_map, token_strip, vector_colors


def opened(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_different_ids_have_different_colours_and_the_same_id_the_same() -> None:
    colors = id_colors(np.arange(512), 512)
    assert len(np.unique(colors, axis=0)) == 512
    assert (id_colors(np.array([7, 7, 8]), 512)[[0, 1]] == colors[7]).all()
    assert id_colors(np.array([0, 1]), 2).shape == (2, 3)


def test_cells_of_padding_reach_over_the_border() -> None:
    colors = id_colors(np.arange(6), 64)
    found = token_map(colors, (2, 3), 8, (13, 20), "words")
    assert (found.width, found.height, found.cells_width, found.cells_height) == (20, 13, 24, 16)
    assert (opened(found.uri) == colors.reshape(2, 3, 3)).all()


def test_slots_without_a_token_are_clear() -> None:
    colors = id_colors(np.array([5, 9]), 64)
    found = token_strip(colors, np.array([0, 17]), 20, "words")
    pixels = opened(found.uri)
    assert (found.width, found.height) == (16, 2) and (pixels[..., 3] > 0).sum() == 2
    assert (pixels[0, 0, :3] == colors[0]).all() and (pixels[1, 1, :3] == colors[1]).all()


def test_vectors_that_are_alike_look_alike() -> None:
    rng = np.random.default_rng(0)
    far = np.concatenate([rng.normal(0, 0.01, (20, 8)), rng.normal(3, 0.01, (20, 8))]).astype(np.float32)
    first, second = vector_colors([far[:30], far[30:]])
    everything = np.concatenate([first, second]).astype(int)
    assert first.shape == (30, 3) and second.shape == (10, 3)
    gap = abs(everything[:20, 0].mean() - everything[20:, 0].mean())
    assert gap > 150 and (vector_colors([far])[0] == everything).all()


def test_vectors_of_two_numbers_and_equal_ones_have_colours_too() -> None:
    assert vector_colors([np.zeros((4, 2), np.float32)])[0].shape == (4, 3)
