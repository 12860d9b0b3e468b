"""Smaller pictures say less: by the size at which a model sees them, and in whole tokens where size makes the count."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from vistok.lvlm.downsample import EvenlySpaced, shrink, sizes_follow_pictures
from vistok.lvlm.micro import make_processor
from vistok.pruning.pool import Pool
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

from .conftest import tiny_of
from .micro_fixtures import SETTINGS, tiny_micro


class Processor:
    def __init__(self, image_processor: Any) -> None:
        self.image_processor = image_processor


def noise(side: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("side", [48, 192])
def test_a_fixed_tower_sees_what_so_many_tokens_could_say(side: int) -> None:
    model, processor = tiny_micro()
    assert not sizes_follow_pictures(model)
    picture = noise(side)
    blurred = shrink(model, processor, 0.25)(picture)
    assert blurred.size == picture.size
    # A quarter of the tokens of a tower of 48 pixels is 24 pixels, however large the file.
    small = picture.resize((24, 24), Image.Resampling.BICUBIC)
    expected = small.resize(picture.size, Image.Resampling.BICUBIC)
    assert np.array_equal(np.asarray(blurred), np.asarray(expected))


def test_a_picture_smaller_than_that_stays_as_it_is() -> None:
    picture = noise(20)
    assert shrink(tiny_micro()[0], make_processor(SETTINGS), 0.5)(picture).tobytes() == picture.tobytes()


@pytest.mark.parametrize(("share", "tokens"), [(1.0, 16), (0.25, 4), (0.1, 1)])
def test_a_model_that_counts_tokens_by_size_gets_fewer(share: float, tokens: int) -> None:
    model = tiny_of("qwen2_vl").model
    images = Qwen2VLImageProcessor(patch_size=4, merge_size=2, size={"shortest_edge": 64, "longest_edge": 4096})
    assert sizes_follow_pictures(model)
    shrunk = shrink(model, Processor(images), share)(noise(32))
    grid = images(images=[shrunk], return_tensors="pt")["image_grid_thw"][0]
    assert int(grid.prod()) // 4 == tokens


def test_kept_tokens_are_in_the_middle_of_equal_cells() -> None:
    tokens = TokenTensor(TokenSpec("toy", dim=1), embeds=torch.zeros(1, 36, 1), coords=grid_coords(6, 6))
    chosen = EvenlySpaced().select(tokens, 0.25)
    assert chosen.index.tolist() == Pool().select(tokens, 9).index.tolist()
    assert chosen.index.tolist() == [[0, 2, 4, 12, 14, 16, 24, 26, 28]]


@pytest.mark.parametrize("share", [0.0, 1.5, -0.1])
def test_a_share_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"share of the tokens in \(0, 1\]"):
        shrink(*tiny_micro(), share)


def test_an_image_processor_that_tells_no_size_is_refused() -> None:
    with pytest.raises(ValueError, match="expected an image processor with size or crop_size, got object"):
        shrink(tiny_micro()[0], Processor(object()), 0.5)
