"""Features of scenes kept beside a run: made once, the same when it goes on, refused when they are of another kind."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vistok.data.scenes import render, seeds_of
from vistok.data.scenes.captions import caption
from vistok.train.scene_features import SceneFeatures, cached_features, scene_features


class Tower:
    """Means of 8 x 8 cells of each colour, and how often it was asked."""

    calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        return torch.nn.functional.avg_pool2d(images, 8).flatten(2).transpose(1, 2)


def made(folder: Path, tower: Tower, scenes: int, of: str = "means") -> SceneFeatures:
    origin = {"tower": of}
    return cached_features(folder, origin, seeds_of("train")[5 : 5 + scenes], 64, tower, bf16=False, per_file=2)


def test_rows_are_what_the_tower_says_about_each_scene_and_captions_are_its_own(tmp_path: Path) -> None:
    found = made(tmp_path, Tower(), 5)
    seeds = seeds_of("train")[5:10]
    assert len(found) == 5 and found.captions == [caption(render(seed, 64).layout) for seed in seeds]
    image = torch.from_numpy(render(seeds[3], 64).image).permute(2, 0, 1)[None].float() / 255
    torch.testing.assert_close(found.rows([4, 3])[1], Tower()(image)[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(found.rows(range(5)), scene_features(seeds, 64, Tower()), rtol=0, atol=1e-3)


def test_what_is_there_is_not_made_again_and_more_scenes_go_on_behind_it(tmp_path: Path) -> None:
    whole = made(tmp_path / "whole", Tower(), 7)
    for scenes in (3, 7):
        tower = Tower()
        parts = made(tmp_path / "parts", tower, scenes)
        assert tower.calls == {3: 2, 7: 3}[scenes], scenes  # files of 2, 1; then of 2, 2, 1
    assert torch.equal(parts.rows(range(7)), whole.rows(range(7)))
    again = Tower()
    made(tmp_path / "parts", again, 7)
    assert again.calls == 0


def test_features_of_another_tower_are_refused(tmp_path: Path) -> None:
    made(tmp_path, Tower(), 2)
    with pytest.raises(ValueError, match="expected features of .*'maxima'.* got those of .*'means'.*another `out`"):
        made(tmp_path, Tower(), 2, of="maxima")
