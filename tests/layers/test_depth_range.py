"""Depth to 0..1 with the nearest high, and back."""

import pytest
import torch

from vistok.layers.depth_range import INVERSIONS, NORMALIZATIONS, POLARITIES, DepthRange


@pytest.mark.parametrize("polarity", POLARITIES)
@pytest.mark.parametrize("inversion", INVERSIONS)
def test_minmax_fills_the_range_and_is_undone(polarity, inversion, generator):
    maps = 1 + 9 * torch.rand(3, 1, 8, 8, generator=generator)
    found = DepthRange(polarity, "minmax", inversion)
    values, low, high = found.apply(maps)
    assert torch.equal(values.amin((1, 2, 3)), torch.zeros(3)) and torch.equal(values.amax((1, 2, 3)), torch.ones(3))
    nearest = maps.flatten(1).argmin(1) if polarity == "near_low" else maps.flatten(1).argmax(1)
    assert torch.equal(values.flatten(1).argmax(1), nearest)
    torch.testing.assert_close(found.undo(values, low, high), maps)


def test_percentiles_cut_what_few_pixels_reach():
    maps = torch.cat((torch.linspace(0, 1, 98), torch.tensor([50.0, -50.0]))).view(1, 1, 10, 10)
    values, low, high = DepthRange(normalize="percentile").apply(maps)
    assert 0 <= float(low) < 0.05 and 0.95 < float(high) <= 1
    assert float(values.max()) == 1 and float((values == 1).sum()) <= 4


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_constant_maps_are_zeros_or_stay(normalize):
    maps = torch.full((2, 4, 4), 0.25)
    values = DepthRange(normalize=normalize).apply(maps).values
    assert torch.equal(values, torch.full((2, 1, 4, 4), 0.25 if normalize == "none" else 0.0))


def test_eight_bit_maps_are_divided_by_255():
    maps = torch.tensor([[[0, 51], [102, 255]]], dtype=torch.uint8)
    values = DepthRange(normalize="none").apply(maps).values
    torch.testing.assert_close(values[0, 0], torch.tensor([[0.0, 0.2], [0.4, 1.0]]))


@pytest.mark.parametrize(
    ("settings", "maps", "message"),
    [
        ({}, torch.zeros(4, 4), r"\[B, 1, H, W\] or \[B, H, W\]"),
        ({}, torch.zeros(1, 3, 4, 4), r"\[B, 1, H, W\] or \[B, H, W\]"),
        ({}, torch.tensor([[[0.0, float("nan")]]]), "finite"),
        ({"polarity": "near_low"}, torch.tensor([[[0.0, 1.0]]]), "metres > 0"),
        ({"normalize": "none"}, torch.tensor([[[0.0, 2.0]]]), r"maps in 0\.\.1"),
    ],
)
def test_maps_that_hold_no_such_depth_are_refused(settings, maps, message):
    with pytest.raises(ValueError, match=message):
        DepthRange(**settings).apply(maps)


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="expected polarity in"):
        DepthRange("up")


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_limits_are_on_the_device_of_the_maps(normalize, generator):
    maps = torch.rand(2, 1, 4, 4, generator=generator)
    with torch.device("meta"):  # where anything made without a device of its own goes
        assert DepthRange(normalize=normalize).apply(maps).values.device.type == "cpu"
