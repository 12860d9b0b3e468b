"""Latents that know whether they are normalised."""

from typing import Any

import pytest
import torch

from vistok.layers.normalizer import LatentNormalizer, NormalizedLatent, RawLatent


def example() -> LatentNormalizer:
    normalizer = LatentNormalizer(2)
    normalizer.set_statistics([1.0, -2.0], [2.0, 0.5])
    return normalizer


def test_channels_are_shifted_and_scaled() -> None:
    values = example().normalize(RawLatent(torch.tensor([[3.0, -1.0]]))).values
    assert values.tolist() == [[1, 2]]


def test_back_and_forth_returns_the_latents(generator: torch.Generator) -> None:
    raw = torch.randn(3, 5, 2, generator=generator)
    torch.testing.assert_close(example().denormalize(example().normalize(RawLatent(raw))).values, raw)


def test_without_statistics_nothing_changes() -> None:
    assert LatentNormalizer(2).normalize(RawLatent(torch.ones(1, 2))).values.tolist() == [[1, 1]]


def test_normalising_twice_is_refused() -> None:
    once = example().normalize(RawLatent(torch.ones(1, 2)))
    with pytest.raises(TypeError, match="expected RawLatent, got NormalizedLatent; it is applied once only"):
        example().normalize(once)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected NormalizedLatent, got RawLatent"):
        example().denormalize(example().denormalize(once))  # type: ignore[arg-type]


def test_bare_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="expected RawLatent, got Tensor"):
        example().normalize(torch.ones(1, 2))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected NormalizedLatent, got Tensor"):
        example().denormalize(torch.ones(1, 2))  # type: ignore[arg-type]


def test_statistics_travel_with_the_state() -> None:
    other = LatentNormalizer(2)
    other.load_state_dict(example().state_dict())
    latent = NormalizedLatent(torch.ones(1, 2))
    assert torch.equal(other.denormalize(latent).values, example().denormalize(latent).values)


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0, 0.0], [1.0, 0.0], "positive std, got std"),
        ([0.0, 0.0], [1.0, -1.0], "positive std"),
        ([0.0, 0.0], [1.0, float("nan")], "positive std"),
        ([0.0, float("inf")], [1.0, 1.0], "finite means"),
        ([0.0], [1.0, 1.0], r"expected mean and std \[2\], got \[1\] and \[2\]"),
        (0.0, 1.0, r"expected mean and std \[2\], got \[\] and \[\]"),
    ],
)
def test_statistics_that_make_no_sense_are_refused(mean: Any, std: Any, message: str) -> None:
    normalizer = example()
    with pytest.raises(ValueError, match=message):
        normalizer.set_statistics(mean, std)
    assert normalizer.mean.tolist() == [1, -2]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_statistics_are_not_rounded_to_the_dtype_of_the_model(dtype: torch.dtype) -> None:
    normalizer = LatentNormalizer(2)
    normalizer.set_statistics([0.12345678, -1.2345678], [1.0009765, 3.1415926])
    mean, std = normalizer.mean.clone(), normalizer.std.clone()
    torch.nn.Sequential(normalizer).to(dtype)
    assert normalizer.mean.equal(mean) and normalizer.std.equal(std)
    assert normalizer.normalize(RawLatent(torch.ones(1, 2, dtype=dtype))).values.dtype == dtype
    assert normalizer.to("meta").mean.is_meta
