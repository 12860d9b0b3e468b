import math

import pytest
import torch

from vistok.train.losses import PatchDiscriminator, hinge_discriminator_loss, make_losses


def value(name, pred, target):
    return make_losses({name: 1.0})[name][1](pred, target)


def test_losses_have_their_written_out_values(generator):
    target = torch.zeros(2, 3, 4, 4)
    pred = torch.stack([torch.full((3, 4, 4), 0.1), torch.full((3, 4, 4), -0.3)])
    assert value("l1", pred, target) == pytest.approx(0.2)
    assert value("l2", pred, target) == pytest.approx((0.01 + 0.09) / 2)
    assert value("rmse", pred, target) == pytest.approx((0.1 + 0.3) / 2, rel=1e-3)
    assert value("log_l2", pred, target) == pytest.approx((math.log(0.011) + math.log(0.091)) / 2)


def test_an_unknown_loss_is_an_error_that_lists_the_losses():
    with pytest.raises(ValueError, match="log_l2"):
        make_losses({"l3": 1.0})


def test_st_lpips_is_zero_for_equal_pictures_and_gives_gradients(photograph):
    pytest.importorskip("stlpips_pytorch", reason="extra 'metrics' (stlpips-pytorch) is absent")
    image = photograph[:, :, :64, :64]
    assert value("st_lpips", image, image) == pytest.approx(0, abs=1e-5)
    blurred = torch.nn.functional.avg_pool2d(image, 5, 1, 2).requires_grad_()
    loss = value("st_lpips", blurred, image)
    loss.backward()
    assert loss > 0.05 and blurred.grad.abs().sum() > 0


def test_the_discriminator_learns_to_tell_noise_from_a_photograph(photograph, generator):
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    optimizer = torch.optim.Adam(discriminator.parameters(), 1e-2)
    real = photograph[:, :, :64, :64]
    fake = torch.rand(real.shape, generator=generator)
    for _ in range(20):
        loss = hinge_discriminator_loss(discriminator(real), discriminator(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 and discriminator(real).shape == (1, 1, 8, 8)
