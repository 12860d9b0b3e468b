import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

from vistok.data.crops import CropSampler


@pytest.fixture
def folder(tmp_path):
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    Image.fromarray(data.coffee()).save(tmp_path / "coffee.png")
    return tmp_path


def test_a_step_always_gives_the_same_batch_and_another_step_another(folder):
    sampler, again = (CropSampler([folder], 64, [256, 128], seed=3) for _ in range(2))
    assert torch.equal(sampler.batch(7, 4), again.batch(7, 4))
    assert not torch.equal(sampler.batch(7, 4), sampler.batch(8, 4))
    assert not torch.equal(sampler.batch(7, 4), CropSampler([folder], 64, [256, 128], seed=4).batch(7, 4))


def test_a_batch_is_float_in_0_1_and_cut_from_the_pictures(folder):
    sampler = CropSampler([folder], 32, [64], seed=0)
    batch = sampler.batch(0, 8)
    assert batch.shape == (8, 3, 32, 32) and batch.dtype == torch.float32
    assert batch.min() >= 0 and batch.max() <= 1
    levels = [np.lib.stride_tricks.sliding_window_view(level, (32, 32, 3)) for level in sampler.levels]
    for crop in batch:
        pixels = (crop * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        assert any((level == view).all((-3, -2, -1)).any() for level in levels for view in (pixels, pixels[:, ::-1]))


def test_pictures_smaller_than_a_scale_are_not_enlarged(folder):
    sampler = CropSampler([folder], 64, [450, 300], seed=0)
    assert sorted(min(level.shape[:2]) for level in sampler.levels) == [300, 300, 450]


def test_no_picture_large_enough_is_an_error_that_names_the_crop(folder):
    with pytest.raises(ValueError, match="crop of 600 px"):
        CropSampler([folder], 600, [400, 300], seed=0)
