import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from vistok.data.fashion_mnist import FashionMnist
from vistok.data.scenes.attributes import ATTRIBUTES
from vistok.train.labelled_images import FASHION, TASKS, classes_of, labelled_images, source_of


def test_every_task_has_a_source_and_classes() -> None:
    assert {source_of(task) for task in TASKS} == {"portrait", "scene", "fashion_mnist"}
    assert len(classes_of("color")) == 6 and len(classes_of(FASHION)) == 10
    with pytest.raises(ValueError, match="task: expected one of color, .*, got 'hue'"):
        source_of("hue")


def test_scenes_are_the_same_each_time_and_the_splits_share_none() -> None:
    train, again = (labelled_images("portrait", "train", 3, 64) for _ in range(2))
    assert train.images.shape == (3, 3, 64, 64) and train.images.dtype == torch.float32
    assert train.images.min() >= 0 and train.images.max() <= 1
    assert torch.equal(train.images, again.images)
    assert set(train.labels) == {name for name, about in ATTRIBUTES.items() if about.view == "portrait"}
    test = labelled_images("portrait", "test", 3, 64)
    assert not any(torch.equal(a, b) for a in train.images for b in test.images)
    more = labelled_images("portrait", "train", 4, 64)
    assert torch.equal(more.images[:3], train.images) and torch.equal(more.labels["shape"][:3], train.labels["shape"])


def test_clothes_are_enlarged_grey_and_in_an_order_of_their_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grey = np.arange(40, dtype=np.uint8)[:, None, None] * np.ones((28, 28), np.uint8)
    monkeypatch.setattr(
        "vistok.train.labelled_images.read_fashion_mnist",
        lambda folder, split: FashionMnist(grey, np.arange(40) % 10),
    )
    found = labelled_images(FASHION, "test", 12, 64, tmp_path)
    assert found.images.shape == (12, 3, 64, 64)
    shades = (found.images[:, 0, 0, 0] * 255).round().long()
    assert torch.equal(found.labels[FASHION], shades % 10) and sorted(shades.tolist()) != list(range(12))
    assert torch.equal(found.images[:, 0], found.images[:, 2])
    assert torch.equal(labelled_images(FASHION, "test", 12, 64, tmp_path).images, found.images)
    with pytest.raises(ValueError, match="at most 40 images of 'test', got 41"):
        labelled_images(FASHION, "test", 41, 64, tmp_path)


def test_clothes_without_a_folder_say_what_fetches_them(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="vistok data fashion_mnist DIR"):
        labelled_images(FASHION, "train", 3, 64)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"other"))
    with pytest.raises(ValueError, match="sha256"):
        labelled_images(FASHION, "train", 3, 64, tmp_path)
