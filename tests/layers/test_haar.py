import torch

from vistok.layers.haar import haar, inverse_haar


def test_one_block_by_hand() -> None:
    block = torch.tensor([[1.0, 2.0], [4.0, 8.0]])[None, None]
    assert haar(block, 1).flatten().tolist() == [15 / 4, -9 / 4, -5 / 4, 3 / 4]


def test_channels_are_grouped_by_band_and_levels_repeat_over_all_of_them() -> None:
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    once, twice = haar(images, 1), haar(images, 2)
    assert once.shape == (2, 12, 4, 6) and twice.shape == (2, 48, 2, 3)
    torch.testing.assert_close(once[:, :3], torch.nn.functional.avg_pool2d(images, 2))
    torch.testing.assert_close(twice, haar(once, 1))


def test_it_is_the_correlation_with_the_wavelet_filters() -> None:
    images = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    low, high = torch.tensor([0.5, 0.5]) ** 0.5, torch.tensor([0.5, 0.5]) ** 0.5 * torch.tensor([1.0, -1.0])
    bands = []
    for across in (low, high):
        for down in (low, high):
            kernel = (down[:, None] * across)[None, None] / 2
            bands.append(torch.nn.functional.conv2d(images, kernel, stride=2))
    torch.testing.assert_close(haar(images, 1), torch.cat(bands, 1))


def test_the_inverse_gives_the_images_back() -> None:
    images = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    for levels in (0, 1, 2):
        torch.testing.assert_close(inverse_haar(haar(images, levels), levels), images, rtol=0, atol=1e-6)
