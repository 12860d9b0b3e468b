import pytest
import skimage.metrics
import torch

from vistok.metrics.reconstruction import psnr, ssim


def pair(batch=1, height=33, width=47, seed=0):
    generator = torch.Generator().manual_seed(seed)
    target = torch.rand(batch, 3, height, width, generator=generator)
    return (target + 0.1 * torch.randn(target.shape, generator=generator)).clamp(0, 1), target


def as_array(image):
    return image.permute(1, 2, 0).double().numpy()


def test_psnr_is_that_of_scikit_image():
    pred, target = pair()
    expected = skimage.metrics.peak_signal_noise_ratio(as_array(target[0]), as_array(pred[0]), data_range=1)
    assert float(psnr(pred, target)) == pytest.approx(expected, abs=1e-9)


def test_psnr_of_an_error_of_a_tenth_is_twenty_decibels():
    assert float(psnr(torch.full((1, 3, 4, 4), 0.6), torch.full((1, 3, 4, 4), 0.5))) == pytest.approx(20, abs=1e-5)


def test_psnr_averages_decibels_over_images_not_errors():
    pred, target = pair(batch=3)
    pred[0] = target[0] + 0.01
    alone = [float(psnr(pred[i : i + 1], target[i : i + 1])) for i in range(3)]
    assert float(psnr(pred, target)) == pytest.approx(sum(alone) / 3)


def test_psnr_clamps_to_the_valid_range_and_stays_finite():
    target = torch.ones(1, 3, 4, 4)
    assert float(psnr(target + 5, target)) == pytest.approx(100)


def test_ssim_is_that_of_scikit_image():
    pred, target = pair()
    expected = skimage.metrics.structural_similarity(
        as_array(target[0]),
        as_array(pred[0]),
        data_range=1,
        channel_axis=2,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert float(ssim(pred, target)) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_equal_images_is_one():
    _, target = pair(batch=2)
    assert float(ssim(target, target)) == pytest.approx(1)


def test_images_that_cannot_be_compared_are_refused():
    with pytest.raises(ValueError, match=r"\[1, 3, 8, 8\] and \[1, 3, 8, 9\]"):
        psnr(torch.rand(1, 3, 8, 8), torch.rand(1, 3, 8, 9))
    with pytest.raises(ValueError, match="at least 11 px"):
        ssim(torch.rand(1, 3, 10, 30), torch.rand(1, 3, 10, 30))
