"""Pictures of every kind to float32 [3, H, W] in [0, 1]."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from vistok.layers.preprocess import Preprocess

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


@pytest.mark.parametrize(
    "picture",
    [
        PIXELS,
        PIXELS[:, ::-1][:, ::-1],  # not contiguous
        Image.fromarray(PIXELS),
        torch.from_numpy(PIXELS).permute(2, 0, 1),
        torch.from_numpy(PIXELS).permute(2, 0, 1).double() / 255,
    ],
    ids=["array", "view", "pil", "uint8 tensor", "float tensor"],
)
def test_every_kind_of_picture_gives_the_same_tensor(picture: Any) -> None:
    image = Preprocess()(picture)
    assert image.dtype == torch.float32 and image.shape == (3, 2, 3)
    torch.testing.assert_close(image, torch.from_numpy(PIXELS).permute(2, 0, 1) / 255)


@pytest.mark.parametrize("picture", [PIXELS[:, :, 0], Image.fromarray(PIXELS[:, :, 0])], ids=["array", "pil"])
def test_grey_becomes_three_equal_channels(picture: Any) -> None:
    image = Preprocess()(picture)
    assert torch.equal(image, torch.from_numpy(PIXELS[:, :, 0]).expand(3, 2, 3) / 255)


def test_the_result_shares_no_memory_with_an_array() -> None:
    source = PIXELS.astype(np.float32)
    Preprocess()(source).zero_()
    assert source.max() > 0


def test_the_shorter_side_is_resized_and_the_centre_cropped() -> None:
    assert Preprocess(resize=8)(torch.rand(3, 16, 40)).shape == (3, 8, 20)
    assert Preprocess(resize=8)(torch.rand(3, 40, 16)).shape == (3, 20, 8)
    assert Preprocess(resize=8, crop=8)(torch.rand(3, 16, 40)).shape == (3, 8, 8)
    columns = torch.arange(10.0).expand(3, 4, 10) / 10
    assert torch.equal(Preprocess(crop=4)(columns), columns[:, :, 3:7])


def test_both_sides_given_squash_the_whole_picture() -> None:
    columns = torch.arange(40.0).expand(3, 16, 40) / 40
    squashed = Preprocess(resize=[8, 10])
    assert squashed(columns).shape == (3, 8, 10)
    torch.testing.assert_close(squashed(columns)[:, :, 3:-3], columns[:, 4:12, 1::4][:, :, 3:-3], rtol=0, atol=0.02)
    assert squashed.crop_box(16, 40) is None
    assert Preprocess(resize=[8, 8], crop=4).crop_box(40, 80) == (10, 20, 20, 40)
    assert squashed == Preprocess(resize=(8, 10)) and hash(squashed) == hash(Preprocess(resize=(8, 10)))
    for wrong in ([8], [8, 0], [8, 8, 8], "8", 0):
        with pytest.raises(ValueError, match="expected resize"):
            Preprocess(resize=wrong)  # type: ignore[arg-type]


def test_bilinear_resizing_is_another_transform_and_says_so() -> None:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    cubic, linear = Preprocess(resize=8), Preprocess(resize=8, interpolation="bilinear")
    expected = torch.nn.functional.interpolate(picture[None], size=(8, 8), mode="bilinear", antialias=True)[0]
    assert linear(picture).equal(expected) and not cubic(picture).allclose(expected, atol=1e-3)
    assert str(cubic) == "Preprocess(resize=8, crop=None)"
    assert str(linear) == "Preprocess(resize=8, crop=None, interpolation='bilinear')"
    with pytest.raises(ValueError, match="interpolation to be bicubic or bilinear, got 'lanczos'"):
        Preprocess(interpolation="lanczos")


def test_resizing_stays_in_range_and_keeps_the_mean(photograph: torch.Tensor) -> None:
    small = Preprocess(resize=32)(photograph[0])
    assert small.min() >= 0 and small.max() <= 1
    torch.testing.assert_close(small.mean(), photograph.mean(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((2, 3, 4), np.uint8),
        np.zeros((2, 3, 3), np.int32),
        np.zeros(5, np.uint8),
        torch.zeros(1, 3, 4, 4),
        torch.zeros(3, 4, 4, dtype=torch.int64),
    ],
)
def test_what_is_no_rgb_picture_is_refused_with_shape_and_dtype(picture: Any) -> None:
    with pytest.raises(ValueError, match=r"expected an RGB picture.* got \[.*\] torch\.\w+ from (ndarray|Tensor)"):
        Preprocess()(picture)


def test_a_picture_smaller_than_the_crop_is_refused() -> None:
    with pytest.raises(ValueError, match="expected sides of at least crop=8, got 4x20"):
        Preprocess(crop=8)(torch.rand(3, 4, 20))


@pytest.mark.parametrize("settings", [{"resize": 0}, {"crop": -1}, {"resize": 2.5}])
def test_settings_that_are_no_size_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"expected {name} to be a number of pixels"):
        Preprocess(**settings)
