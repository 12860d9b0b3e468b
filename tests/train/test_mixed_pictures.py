from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

from vistok.data.scenes.render import render
from vistok.data.scenes.splits import split_of
from vistok.train.mixed_pictures import MixedPictures


def test_scenes_come_first_each_once_and_steps_repeat_themselves(tmp_path: Path) -> None:
    Image.fromarray(data.astronaut()).save(tmp_path / "astronaut.png")
    pictures = MixedPictures([tmp_path], 64, [80], 0, 0.5)
    batch = pictures.batch(3, 4)
    assert batch.shape == (4, 3, 64, 64) and batch.dtype == torch.float32 and batch.min() >= 0 and batch.max() <= 1
    for row, seed in enumerate((6, 7)):
        scene = torch.from_numpy(render(seed, 64).image.copy()).permute(2, 0, 1).float() / 255
        assert torch.equal(batch[row], scene)
    assert torch.equal(batch[2:], pictures.crops.batch(3, 2))  # type: ignore[union-attr]
    assert torch.equal(MixedPictures([tmp_path], 64, [80], 0, 0.5).batch(3, 4), batch)
    assert not torch.equal(MixedPictures([tmp_path], 64, [80], 1, 0.5).batch(3, 4)[:2], batch[:2])


def test_scenes_alone_need_no_photographs() -> None:
    assert MixedPictures([], 64, [], 0, 1.0).batch(0, 2).shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="scene_share in"):
        MixedPictures([], 64, [], 0, 1.5)


def test_every_seed_has_its_scenes_and_they_are_of_the_training_split(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def recorded(seed: int, side: int) -> Any:
        drawn.append(seed)
        return render(seed, side)

    monkeypatch.setattr("vistok.train.mixed_pictures.render", recorded)
    for seed in (255, 256, 257, 2**31, -1):
        assert MixedPictures([], 64, [], seed, 1.0).batch(10**6, 2).shape == (2, 3, 64, 64)
    assert len(set(drawn)) == 10 and {split_of(seed) for seed in drawn} == {"train"}
