import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import vistok
from vistok.data.encode import encode_folder
from vistok.data.inputs.mask_ids import MaskCodec, MaskLists, MaskMaps, read_instances
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.scenes.render import render
from vistok.data.store import TokenStore
from vistok.tokens import TokenTensor

ONE_THREAD = EncodeSettings(threads=1, shard_samples=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> str:
    """seg128 with other than its own, missing weights."""
    folder = tmp_path_factory.mktemp("codec")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vistok.codec("seg128", **vistok.info("codec", "seg128").tiny).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Four scenes, with the masks of all but the last: in a folder of maps, and as run lengths in a file."""
    for folder in ("images", "masks"):
        (tmp_path / folder / "sub").mkdir(parents=True)
    rows = []
    for number in range(4):
        scene = render(number, 64)
        Image.fromarray(scene.image).save(tmp_path / "images" / "sub" / f"{number}.png")
        if number < 3:
            Image.fromarray(scene.instances.astype(np.uint8)).save(tmp_path / "masks" / "sub" / f"{number}.png")
            things = [{"label": f"t{at}", "segmentation": run_lengths(mask)} for at, mask in enumerate(scene.masks)]
            rows.append({"file_name": f"sub/{number}.png", "objects": things})
    (tmp_path / "masks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return tmp_path


def run_lengths(mask) -> dict:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], mask.T.reshape(-1).astype(int)))))
    return {"counts": np.diff([0, *edges, mask.size]).tolist(), "size": [*mask.shape]}


def test_the_ids_of_the_codec_lie_beside_the_tokens_of_each_picture(scenes, checkpoint, discrete, tmp_path):
    seg = MaskCodec("seg128", checkpoint)
    maps = open_input(scenes / "images", masks=MaskMaps(scenes / "masks", seg))
    assert maps.fields.names == ["mask_ids"] and maps.left_out == {"pictures without a map of masks": 1}
    lists = open_input(scenes / "images", masks=MaskLists(scenes / "masks.jsonl", seg))
    assert lists.fields.names == ["mask_ids", "mask_labels"] and lists.left_out == {"pictures without masks": 1}
    encode_folder(discrete, maps, tmp_path / "maps", ONE_THREAD)
    encode_folder(discrete, lists, tmp_path / "lists", ONE_THREAD)
    of_maps, of_lists = TokenStore(tmp_path / "maps"), TokenStore(tmp_path / "lists")
    codec = vistok.codec("seg128", checkpoint=checkpoint).eval()
    for number in range(3):
        expected = codec.encode(torch.from_numpy(render(number, 64).masks))
        ids = of_maps.rows[number]["mask_ids"]
        assert ids == of_lists.rows[number]["mask_ids"] == expected.indices.tolist()
        assert of_lists.rows[number]["mask_labels"] == [f"t{at}" for at in range(len(ids))]
        tokens = TokenTensor(spec=codec.spec, indices=torch.tensor(ids))
        assert torch.equal(codec.decode(tokens, (64, 64)), codec.decode(expected))
    assert of_maps.rows[3]["mask_ids"] is None and "masks by seg128" in of_maps.dataset["decoder"]


def test_other_weights_and_a_changed_map_make_another_plan_and_inputs_pickle(scenes, checkpoint, discrete, tmp_path):
    def source(weights=checkpoint):
        return open_input(scenes / "images", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", weights)))

    first = make_plan(discrete, source()).hash
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vistok.codec("seg128", **vistok.info("codec", "seg128").tiny).save_pretrained(tmp_path / "other")
    assert make_plan(discrete, source()).hash == first != make_plan(discrete, source(str(tmp_path / "other"))).hash
    entry = source().entries()[0]
    assert pickle.loads(pickle.dumps(source())).read(entry) == source().read(entry)
    Image.new("L", (64, 64), 1).save(scenes / "masks" / "sub" / "0.png")
    assert make_plan(discrete, source()).hash != first


def test_maps_and_outlines_of_another_kind_are_errors_of_their_picture(scenes, checkpoint, discrete, tmp_path):
    (scenes / "masks" / "sub" / "0.png").write_bytes(b"no picture")
    Image.new("RGB", (8, 8)).save(scenes / "masks" / "sub" / "1.png")
    noise = np.random.default_rng(0).integers(1, 65536, (64, 64)).astype(np.uint16)
    Image.fromarray(noise).save(scenes / "masks" / "sub" / "2.png")
    source = open_input(scenes / "images", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", checkpoint)))
    summary = encode_folder(discrete, source, tmp_path / "store", ONE_THREAD)
    assert (summary.images, summary.errors) == (1, 3)
    said = "".join(path.read_text() for path in (tmp_path / "store" / "errors").iterdir())
    assert "expected a map of masks" in said and "got mode RGB" in said and "at most 1000 things" in said
    rows = [
        {"file_name": "sub/0.png", "objects": [{"bbox": [0, 0, 1, 1]}]},
        {"file_name": "sub/1.png", "objects": [{"segmentation": {"counts": [4096], "size": [64, 64]}}]},
        {"file_name": "sub/2.png", "objects": [{"segmentation": [[0, 0, 9, 0, 9, 9]]}]},
    ]
    (scenes / "masks.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_input(scenes / "images", masks=MaskLists(scenes / "masks.jsonl", MaskCodec("seg128", checkpoint)))
    summary = encode_folder(discrete, source, tmp_path / "lists", ONE_THREAD)
    said = "".join(path.read_text() for path in (tmp_path / "lists" / "errors").iterdir())
    assert summary.errors == 2 and "expected polygons or run lengths" in said and "something in every mask" in said


def test_a_map_of_another_shape_than_its_picture_is_told_and_one_of_another_scale_is_not(scenes, checkpoint):
    source = open_input(scenes / "images", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", checkpoint)))
    Image.new("L", (128, 128), 1).save(scenes / "masks" / "sub" / "0.png")
    Image.new("L", (64, 96), 1).save(scenes / "masks" / "sub" / "1.png")
    first, second, *_ = source.entries()
    assert len(source.read(first).fields["mask_ids"]) == 1
    with pytest.raises(ValueError, match=r"1.png: expected the picture that was annotated, 64 x 96, .* got 64 x 64"):
        source.read(second)


def test_a_map_of_no_things_gives_no_ids_and_a_palette_its_indices(scenes, checkpoint):
    Image.new("L", (64, 64)).save(scenes / "masks" / "sub" / "0.png")
    source = open_input(scenes / "images", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", checkpoint)))
    assert source.read(source.entries()[0]).fields["mask_ids"] == []
    palette = Image.new("P", (4, 4), 7)
    palette.putpalette([255] * 768)
    palette.save(scenes / "p.png")
    assert (read_instances(scenes / "p.png") == 7).all()


def test_what_makes_no_sense_is_refused(scenes, checkpoint, tmp_path):
    with pytest.raises(ValueError, match="'seg128' has no pretrained weights; give some with --mask-checkpoint"):
        MaskMaps(scenes / "masks")
    with pytest.raises(ValueError, match="expected a codec of masks such as seg128, got depth_nano"):
        MaskMaps(scenes / "masks", MaskCodec("depth_nano"))
    with pytest.raises(FileNotFoundError, match="a folder of maps of masks"):
        MaskMaps(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none"):
        MaskLists(tmp_path / "none", MaskCodec("seg128", checkpoint))
    (tmp_path / "film.mp4").write_bytes(b"")
    with pytest.raises(ValueError, match="masks=.* means nothing for videos"):
        open_input(tmp_path / "film.mp4", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", checkpoint)))


@pytest.mark.slow
def test_masks_come_back_from_a_store_by_a_codec_that_was_trained_on_masks(scenes, discrete, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = {"downsample": 4, "codes": 64, "codebook_dim": 16, "hidden": 8, "blocks": 1}
        codec = vistok.codec("seg128", image_size=16, network=network)
        shown = torch.cat([cuts(render(seed, 64), 16) for seed in range(10, 40)])
        adam = torch.optim.Adam(codec.parameters(), 5e-3)
        for step in range(250):
            batch = shown[torch.randint(len(shown), (24,), generator=torch.Generator().manual_seed(step))]
            adam.zero_grad()
            codec.train().network(batch).loss.backward()
            adam.step()
        codec.eval().save_pretrained(tmp_path / "codec")
    source = open_input(
        scenes / "images", masks=MaskMaps(scenes / "masks", MaskCodec("seg128", str(tmp_path / "codec")))
    )
    encode_folder(discrete, source, tmp_path / "store", ONE_THREAD)
    rows = TokenStore(tmp_path / "store").rows
    scores, of_boxes = [], []
    for number in range(3):
        tokens = TokenTensor(spec=codec.spec, indices=torch.tensor(rows[number]["mask_ids"]))
        seen, scene = codec.decode(tokens, (64, 64)), render(number, 64)
        there = torch.from_numpy(scene.masks)
        scores += ((seen & there).sum((1, 2)) / (seen | there).sum((1, 2))).tolist()
        left, top, right, bottom = scene.boxes.T
        of_boxes += (scene.masks.sum((1, 2)) / ((right - left) * (bottom - top))).tolist()
    assert np.mean(scores) > np.mean(of_boxes) + 0.05 and np.mean(scores) > 0.75


def cuts(scene, side: int) -> torch.Tensor:
    """What is in the box of each thing, [N, 1, side, side]."""
    found = []
    for mask, (left, top, right, bottom) in zip(scene.masks, scene.boxes, strict=True):
        part = torch.from_numpy(mask[top:bottom, left:right]).float()[None, None]
        found.append(F.interpolate(part, (side, side), mode="bilinear", antialias=True))
    return torch.cat(found)
