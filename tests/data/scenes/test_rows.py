import io

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vistok.data.scenes import Scene, questions_about, render, seeds_of
from vistok.data.scenes.captions import caption
from vistok.data.scenes.rows import parquet, pictures, row


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [render(seed, 96) for seed in seeds_of("heldout")[:6]]


def _content(scenes: list[Scene]) -> bytes:
    names = [f"{number}.png" for number in range(len(scenes))]
    return parquet(
        [row(s, pictures(s), questions_about(s.layout), name) for s, name in zip(scenes, names, strict=True)]
    )


def _opened(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)))


def test_pictures_hold_the_maps_without_loss_and_depth_to_the_millimetre(scenes):
    for scene in scenes:
        files = pictures(scene)
        assert (_opened(files.image) == scene.image).all()
        assert (_opened(files.masks) == scene.instances).all() and Image.open(io.BytesIO(files.masks)).mode == "L"
        assert Image.open(io.BytesIO(files.depth)).mode == "I;16"
        assert np.abs(_opened(files.depth) / 1000 - scene.depth).max() < 0.00051


def test_a_parquet_file_holds_every_scene_and_is_the_same_each_time(scenes):
    content = _content(scenes)
    assert content == _content([render(scene.layout, 96) for scene in scenes])
    read = pq.read_table(io.BytesIO(content)).to_pylist()
    for scene, found in zip(scenes, read, strict=True):
        things = scene.layout.things
        assert (found["seed"], found["split"]) == (scene.layout.seed, "heldout")
        for (left, top, width, height), area, mask in zip(
            found["objects"]["bbox"], found["objects"]["area"], scene.masks, strict=True
        ):
            assert mask[top : top + height, left : left + width].sum() == mask.sum() == area
        for name in ("shape", "color", "texture", "size", "glyph"):
            assert found["objects"][name] == [getattr(thing, name) for thing in things]
        for name in ("x", "y", "radius", "depth", "rotation"):
            np.testing.assert_allclose(found["objects"][name], [getattr(thing, name) for thing in things], rtol=1e-6)
        assert found["caption"] == caption(scene.layout)
        asked = [(one["kind"], one["question"], one["answer"]) for one in found["questions"]]
        assert asked == [(q.kind, q.text, q.answer) for q in questions_about(scene.layout)]


def test_datasets_reads_pictures_class_names_and_lists(scenes, tmp_path, monkeypatch):
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    folder = tmp_path / "dataset" / "data"
    folder.mkdir(parents=True)
    (folder / "heldout-00000-of-00001.parquet").write_bytes(_content(scenes))
    loaded = datasets.load_dataset(str(tmp_path / "dataset"), split="heldout", cache_dir=str(tmp_path / "cache"))
    assert len(loaded) == len(scenes)
    for scene, found in zip(scenes, loaded, strict=True):
        assert (np.asarray(found["image"]) == scene.image).all()
        assert (np.asarray(found["masks"]) == scene.instances).all()
        assert np.abs(np.asarray(found["depth"]) / 1000 - scene.depth).max() < 0.00051
        names = [f"{thing.color} {thing.shape}" for thing in scene.layout.things]
        assert [_class_names(loaded)[number] for number in found["objects"]["category"]] == names
        assert found["questions"][0]["question"] == questions_about(scene.layout)[0].text


def _class_names(loaded) -> list[str]:
    return loaded.features["objects"]["category"].feature.names
