"""Losses of maps on numbers small enough to work out by hand."""

import math

import pytest
import torch

from vistok.layers.map_losses import MAP_LOSSES, unit_normals


def test_squared_error_counts_only_where_the_sensor_saw_something():
    target, predicted = torch.tensor([[[[0.0, 2.0], [4.0, 0.0]]]]), torch.tensor([[[[9.0, 1.0], [7.0, 9.0]]]])
    assert float(MAP_LOSSES["mse_above_zero"](predicted, target)) == (1 + 9) / 2
    assert float(MAP_LOSSES["mse_above_zero"](predicted, target * 0)) == 0


def test_silog_is_its_formula_and_forgives_half_of_a_common_scale():
    target, predicted = torch.tensor([[[[1.0, 2.0, 0.0]]]]), torch.tensor([[[[1.0, 1.0, 5.0]]]])
    d = math.log(2)
    assert float(MAP_LOSSES["silog"](predicted, target)) == pytest.approx(math.sqrt(d * d / 2 - 0.5 * (d / 2) ** 2))
    assert float(MAP_LOSSES["silog"](target * 3, target)) == pytest.approx(math.sqrt(0.5) * math.log(3), rel=1e-5)
    assert float(MAP_LOSSES["silog"](predicted, target * 0)) == 0


def test_silog_has_finite_gradients_where_prediction_is_right_or_negative():
    target = torch.tensor([[[[1.0, 2.0]]]])
    for values in ([1.0, 2.0], [-1.0, -2.0]):
        predicted = torch.tensor([[[values]]], requires_grad=True)
        MAP_LOSSES["silog"](predicted, target).backward()
        assert predicted.grad is not None and bool(predicted.grad.isfinite().all())


def test_cross_entropy_leaves_out_class_minus_one():
    logits = torch.tensor([[[[0.0, 0.0]], [[0.0, math.log(3)]]]])  # two classes, two places
    assert float(MAP_LOSSES["cross_entropy"](logits, torch.tensor([[[[-1.0, 1.0]]]]))) == pytest.approx(-math.log(0.75))
    assert float(MAP_LOSSES["cross_entropy"](logits, torch.full((1, 1, 1, 2), -1.0))) == 0


def test_normals_are_compared_by_angle_and_a_little_by_length():
    up, side = torch.tensor([0.0, 1.0, 0.0]).view(1, 3, 1, 1), torch.tensor([2.0, 0.0, 0.0]).view(1, 3, 1, 1)
    assert float(MAP_LOSSES["cosine"](up, up)) == pytest.approx(0)
    assert float(MAP_LOSSES["cosine"](side, up)) == pytest.approx(1 + 0.1 * 5 / 3)


def test_normals_get_length_one_and_a_direction_where_there_is_none():
    out = unit_normals(torch.tensor([[[[3.0, 0.0]], [[0.0, 0.0]], [[4.0, 0.0]]]]))
    torch.testing.assert_close(out[0, :, 0].T, torch.tensor([[0.6, 0.0, 0.8], [0.0, 0.0, 1.0]]))
