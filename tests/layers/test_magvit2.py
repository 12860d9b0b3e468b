"""MAGVIT-v2's decoder: depth to space in the order of Open-MAGVIT2, normalisation by the code."""

import torch

from vistok.layers.magvit2 import AdaptiveNorm, Magvit2Decoder, _Upsample


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def test_channels_become_rows_then_columns_of_a_cell() -> None:
    upsample = _Upsample(2)
    torch.nn.init.zeros_(upsample.conv1.weight)
    upsample.conv1.bias.data.copy_(torch.arange(8.0))
    image = upsample(torch.zeros(1, 2, 3, 4))
    assert image.shape == (1, 2, 6, 8)
    assert image[0, :, 2, 4].tolist() == [0.0, 1.0] and image[0, :, 2, 5].tolist() == [2.0, 3.0]
    assert image[0, :, 3, 4].tolist() == [4.0, 5.0] and image[0, :, 3, 5].tolist() == [6.0, 7.0]


def test_scale_and_bias_come_from_deviation_and_mean_of_the_code() -> None:
    norm, x, code = AdaptiveNorm(3, 32), randn(2, 32, 4, 6), randn(2, 3, 2, 3)
    scale = norm.gamma((code.flatten(2).var(-1) + 1e-6).sqrt())
    bias = norm.beta(code.flatten(2).mean(-1))
    expected = torch.nn.functional.group_norm(x, 32, eps=1e-6) * scale[..., None, None] + bias[..., None, None]
    torch.testing.assert_close(norm(x, code), expected)
    assert bool(norm(x[:, :, :2, :2], code[..., :1, :1]).isfinite().all())  # one code has no deviation


def test_every_norm_is_as_wide_as_what_comes_into_its_level() -> None:
    decoder = Magvit2Decoder(32, [1, 2, 3], 1, 5)
    assert [norm.gamma.out_features for norm in decoder.adaptive] == [64, 96, 96]
    assert decoder(torch.ones(1, 5, 2, 3)).shape == (1, 3, 8, 12)
