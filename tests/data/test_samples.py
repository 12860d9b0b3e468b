import sys

import pytest
from PIL import Image

from vistok.data.samples import SAMPLES, sample_path


def test_every_sample_is_a_photograph_in_the_wheel():
    sizes = {}
    for name in SAMPLES:
        with Image.open(sample_path(name)) as image:
            sizes[name] = image.size
    assert sizes == {
        "astronaut": (512, 512),
        "coffee": (600, 400),
        "chelsea": (451, 300),
        "rocket": (640, 427),
        "retina": (1411, 1411),
    }


def test_an_unknown_sample_is_an_error_that_names_them():
    with pytest.raises(KeyError, match="astronaut, coffee"):
        sample_path("lenna")


def test_without_scikit_image_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(ImportError, match=r"vistok\[demo\]"):
        sample_path("coffee")
