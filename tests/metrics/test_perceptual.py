import sys

import pytest
import torch

from vistok.metrics.perceptual import st_lpips_network


@pytest.fixture
def network():
    pytest.importorskip("stlpips_pytorch", reason="extra vistok[metrics]: stlpips-pytorch")
    return st_lpips_network()


def noise(seed, batch=2, side=64):
    return torch.rand(batch, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_there_is_one_distance_per_pair(network):
    pred, target = noise(0), noise(1)
    both, second = network(pred, target), network(pred[1:], target[1:])
    assert both.shape == (2,)
    torch.testing.assert_close(both[1:], second)


def test_equal_images_are_at_distance_zero_and_a_shift_costs_less_than_noise(network):
    smooth = torch.nn.functional.interpolate(noise(2, side=8), size=64, mode="bicubic").clamp(-1, 1)
    assert network(smooth, smooth).tolist() == [0, 0]
    shifted, noisy = smooth.roll(1, dims=3), (smooth + 0.4 * noise(3)).clamp(-1, 1)
    assert bool((network(shifted, smooth) < network(noisy, smooth)).all())


def test_gradients_reach_the_prediction_and_no_weight(network):
    pred = noise(4).requires_grad_()
    network(pred, noise(5)).mean().backward()
    assert float(pred.grad.abs().sum()) > 0
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_the_gradient_is_finite_where_all_features_are_zero(network):
    first = network.network.net.slice1[0]
    with torch.no_grad():
        first.weight.zero_()
        first.bias.zero_()
    pred = noise(6).requires_grad_()
    network(pred, noise(7)).sum().backward()
    assert bool(pred.grad.isfinite().all())


def test_train_mode_changes_no_distance(network):
    pred, target = noise(8), noise(9)
    before = network(pred, target)
    torch.testing.assert_close(network.train()(pred, target), before, rtol=0, atol=0)


def test_the_stand_ins_for_debugging_aids_leave_no_trace():
    pytest.importorskip("stlpips_pytorch", reason="extra vistok[metrics]: stlpips-pytorch")
    before = {name: sys.modules.get(name) for name in ("torchsummary", "IPython")}
    for name in [name for name in sys.modules if name.startswith("stlpips_pytorch")]:
        del sys.modules[name]
    st_lpips_network()
    assert {name: sys.modules.get(name) for name in before} == before


def test_an_absent_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "stlpips_pytorch", None)
    monkeypatch.setitem(sys.modules, "stlpips_pytorch.stlpips", None)
    with pytest.raises(ImportError, match=r"vistok\[metrics\]"):
        st_lpips_network()


def test_images_of_two_shapes_are_refused(network):
    with pytest.raises(ValueError, match="one shape"):
        network(noise(0), noise(0, side=32))
