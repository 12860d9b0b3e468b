import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vistok
from vistok.data.encode import encode_folder
from vistok.data.encode_shard import Schedule
from vistok.data.inputs.depth_maps import DepthMaps, read_depth
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.scenes.render import render
from vistok.data.store import TokenStore

ONE_THREAD = EncodeSettings(threads=1, shard_samples=2)


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Four scenes, with the maps of all but the last: three in millimetres, one of them in metres."""
    for number in range(4):
        scene = render(number, 64)
        for folder in ("images", "depth"):
            (tmp_path / folder / "00000").mkdir(parents=True, exist_ok=True)
        Image.fromarray(scene.image).save(tmp_path / "images" / "00000" / f"{number}.png")
        if number == 2:
            Image.fromarray(scene.depth.astype(np.float32)).save(tmp_path / "depth" / "00000" / "2.tif")
        elif number < 3:
            millimetres = np.round(scene.depth * 1000).astype(np.uint16)
            Image.fromarray(millimetres).save(tmp_path / "depth" / "00000" / f"{number}.png")
    return tmp_path


@pytest.fixture
def codec():
    return vistok.codec("depth_nano", pretrained=True)


def test_the_ids_of_the_codec_lie_beside_the_tokens_of_each_picture(scenes, codec, discrete, tmp_path):
    pictures = open_input(scenes / "images", depth=DepthMaps(scenes / "depth"))
    assert pictures.fields.names == ["depth_ids"] and pictures.left_out == {"pictures without a depth map": 1}
    encode_folder(discrete, pictures, tmp_path / "store", ONE_THREAD, Schedule(decode_threads=2))
    store = TokenStore(tmp_path / "store", tokenizer=discrete)
    for number in range(3):
        depth = render(number, 64).depth
        metres = depth if number == 2 else np.round(depth * 1000) / 1000
        expected = codec.encode(torch.from_numpy(metres.astype(np.float32))[None])
        assert store.rows[number]["depth_ids"] == expected.indices[0].tolist()
        [span] = codec.parse(codec.to_text(expected)[0])
        seen = torch.nn.functional.interpolate(codec.decode(codec.tokens([span])), depth.shape)[0, 0]
        assert np.corrcoef(seen.flatten(), 1 / depth.flatten())[0, 1] > 0.8
    assert store.rows[3]["depth_ids"] is None and "depth by depth_nano" in store.dataset["decoder"]


def test_an_input_with_maps_pickles_and_reads_the_same(scenes):
    pictures = open_input(scenes / "images", depth=DepthMaps(scenes / "depth"))
    entry = pictures.entries()[0]
    assert pickle.loads(pickle.dumps(pictures)).read(entry) == pictures.read(entry)


def test_a_changed_map_a_unit_and_other_weights_make_another_plan(scenes, discrete, tmp_path):
    def plan(**options):
        return make_plan(discrete, open_input(scenes / "images", depth=DepthMaps(scenes / "depth", **options)))

    first = plan().hash
    assert plan().hash == first != plan(unit=0.01).hash
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vistok.codec("depth_nano").save_pretrained(tmp_path / "codec")
    assert plan(checkpoint=str(tmp_path / "codec")).hash != first
    shutil.copy(scenes / "depth" / "00000" / "0.png", scenes / "depth" / "00000" / "1.png")
    assert plan().hash != first


def test_maps_of_another_kind_are_errors_of_their_picture(scenes, discrete, tmp_path):
    (scenes / "depth" / "00000" / "0.png").write_bytes(b"no picture")
    Image.fromarray(np.full((8, 8), 9, np.uint8)).save(scenes / "depth" / "00000" / "1.png")
    Image.fromarray(np.zeros((8, 8), np.float32)).save(scenes / "depth" / "00000" / "2.tif")
    pictures = open_input(scenes / "images", depth=DepthMaps(scenes / "depth"))
    summary = encode_folder(discrete, pictures, tmp_path / "store", ONE_THREAD)
    assert (summary.images, summary.errors) == (1, 3)
    said = "".join(path.read_text() for path in (tmp_path / "store" / "errors").iterdir())
    assert "expected a depth map" in said and "8 bits tell no metres" in said and "expected metres > 0" in said


def test_sixteen_bits_are_steps_of_the_unit_and_floats_are_metres(tmp_path):
    Image.fromarray(np.array([[1000, 2500]], np.uint16)).save(tmp_path / "m.png")
    Image.fromarray(np.array([[1.5, 40.25]], np.float32)).save(tmp_path / "f.tif")
    assert read_depth(tmp_path / "m.png", 0.001).tolist() == [[1.0, 2.5]]
    assert read_depth(tmp_path / "f.tif", 0.001).tolist() == [[1.5, 40.25]]


def test_what_makes_no_sense_is_refused(scenes, tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder of depth maps"):
        DepthMaps(tmp_path / "none")
    with pytest.raises(ValueError, match="a unit above 0 metres"):
        DepthMaps(scenes / "depth", unit=0)
    vistok.codec("depth_nano", polarity="near_high").save_pretrained(tmp_path / "near")
    with pytest.raises(ValueError, match="expected a codec of metres"):
        DepthMaps(scenes / "depth", checkpoint=str(tmp_path / "near")).ids(scenes / "depth" / "00000" / "0.png")
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="depth=.* means nothing for videos"):
        open_input(tmp_path / "film.mp4", depth=DepthMaps(scenes / "depth"))
