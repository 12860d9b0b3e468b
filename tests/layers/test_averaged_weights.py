"""Averages in a Lightning file: taken by default, never mixed with plain weights."""

import pytest
import torch

from vistok.layers.averaged_weights import averaged_weights

FILE = {
    "encoder.conv.weight": torch.zeros(2),
    "encoder.conv.bias": torch.zeros(1),
    "loss.discriminator.weight": torch.zeros(3),
    "model_ema.encoderconvweight": torch.ones(2),
    "model_ema.encoderconvbias": torch.ones(1),
    "model_ema.lossdiscriminatorweight": torch.ones(3),
    "model_ema.decay": torch.tensor(0.999),
    "model_ema.num_updates": torch.tensor(7),
}


@pytest.mark.parametrize(("ema", "value"), [(True, 1.0), (False, 0.0)])
def test_averages_or_plain_weights_come_under_the_plain_names(ema: bool, value: float) -> None:
    found = averaged_weights(FILE, ema=ema)
    assert set(found) == {"encoder.conv.weight", "encoder.conv.bias"}
    assert all(bool((tensor == value).all()) for tensor in found.values())


def test_a_file_without_averages_gives_its_plain_weights() -> None:
    plain = {name: tensor for name, tensor in FILE.items() if not name.startswith("model_ema.")}
    assert set(averaged_weights(plain, ema=True)) == {"encoder.conv.weight", "encoder.conv.bias"}


def test_nothing_is_mixed_and_what_does_not_match_stays_visible() -> None:
    file = {name: tensor for name, tensor in FILE.items() if name != "model_ema.encoderconvbias"}
    found = averaged_weights(file | {"model_ema.decoderweight": torch.ones(1)}, ema=True)
    assert set(found) == {"encoder.conv.weight", "model_ema.decoderweight"}
    assert len(averaged_weights(file, ema=False)) == 2
    alike = averaged_weights(FILE | {"encoder.convweight": torch.ones(2)}, ema=True)
    assert set(alike) == {"encoder.conv.bias", "model_ema.encoderconvweight"}
