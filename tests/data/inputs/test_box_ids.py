import json
import pickle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

import vistok
from vistok.data.decode_image import MAX_PIXELS
from vistok.data.encode import encode_folder
from vistok.data.inputs.box_ids import BoxCodec, BoxLists
from vistok.data.inputs.open import open_input
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.scenes.render import render
from vistok.data.scenes.rows import parquet, pictures, row
from vistok.data.store import TokenStore
from vistok.tokens import TokenTensor

ONE_THREAD = EncodeSettings(threads=1, shard_samples=2)


def objects(scene) -> dict:
    left, top, right, bottom = scene.boxes.T.tolist()
    boxes = [[x, y, u - x, v - y] for x, y, u, v in zip(left, top, right, bottom, strict=True)]
    return {"bbox": boxes, "category": [thing.shape for thing in scene.layout.things]}


@pytest.fixture
def scenes(tmp_path) -> Path:
    """Four scenes, with the boxes of all but the last."""
    (tmp_path / "images" / "sub").mkdir(parents=True)
    rows = []
    for number in range(4):
        scene = render(number, 64)
        Image.fromarray(scene.image).save(tmp_path / "images" / "sub" / f"{number}.png")
        rows.append({"file_name": f"sub/{number}.png", "objects": objects(scene)})
    (tmp_path / "boxes.jsonl").write_text("\n".join(map(json.dumps, rows[:3])))
    return tmp_path


def overlaps(ids: list[list[int]], codec_name: str, expected: torch.Tensor) -> torch.Tensor:
    """IoU of each box that the codec reads out of ids with the one it was."""
    codec = vistok.codec(codec_name)
    boxes = codec.decode(TokenTensor(spec=codec.spec, indices=torch.tensor(ids))) * 64
    low, high = torch.maximum(boxes[:, :2], expected[:, :2]), torch.minimum(boxes[:, 2:], expected[:, 2:])
    both = (high - low).clamp(min=0).prod(1)
    return both / ((boxes[:, 2:] - boxes[:, :2]).prod(1) + (expected[:, 2:] - expected[:, :2]).prod(1) - both)


@pytest.mark.parametrize("codec", ["loc1024", "pixel336"])
def test_boxes_come_back_from_the_ids_beside_the_tokens(scenes, discrete, tmp_path, codec):
    source = open_input(scenes / "images", boxes=(str(scenes / "boxes.jsonl"), BoxCodec(codec)))
    assert source.fields.names == ["box_ids", "box_labels"] and source.left_out == {"pictures without boxes": 1}
    encode_folder(discrete, source, tmp_path / "store", ONE_THREAD)
    store = TokenStore(tmp_path / "store", tokenizer=discrete)
    for number in range(3):
        scene = render(number, 64)
        assert store.rows[number]["box_labels"] == [thing.shape for thing in scene.layout.things]
        expected = torch.from_numpy(scene.boxes).float()
        assert float(overlaps(store.rows[number]["box_ids"], codec, expected).min()) > 0.9
    assert store.rows[3]["box_ids"] is None and store.rows[3]["box_labels"] is None
    assert f"boxes by {codec}" in store.dataset["decoder"]


def test_a_picture_of_more_pixels_than_usual_has_boxes_where_it_may_be_encoded(tmp_path):
    Image.new("1", (MAX_PIXELS // 1000 + 1, 1000)).save(tmp_path / "large.png")
    (tmp_path / "b.jsonl").write_text('{"file_name": "large.png", "objects": [{"bbox": [0, 0, 100, 1000]}]}')
    source = open_input(tmp_path, boxes=(str(tmp_path / "b.jsonl"), BoxCodec()))
    assert source.read(source.entries()[0]).fields["box_ids"] == [[0, 0, 1023, 4]]


def test_a_column_of_a_table_gives_the_same_ids_as_a_file(scenes, discrete, tmp_path):
    made = [render(number, 64) for number in range(3)]
    (tmp_path / "t.parquet").write_bytes(
        parquet([row(one, pictures(one), [], f"{at}.png") for at, one in enumerate(made)])
    )
    table = open_input(tmp_path / "t.parquet", image="image", boxes=("objects", BoxCodec()))
    assert table.fields.names[-2:] == ["box_ids", "box_labels"] and "objects" in table.fields.names
    encode_folder(discrete, table, tmp_path / "of_table", ONE_THREAD)
    lists = open_input(scenes / "images", boxes=(str(scenes / "boxes.jsonl"), BoxCodec()))
    encode_folder(discrete, lists, tmp_path / "of_lists", ONE_THREAD)
    there, here = TokenStore(tmp_path / "of_table").rows, TokenStore(tmp_path / "of_lists").rows
    assert [there[at]["box_ids"] for at in range(3)] == [here[at]["box_ids"] for at in range(3)]
    assert there[0]["box_labels"] == [str(one) for one in made[0].class_ids]
    with pytest.raises(ValueError, match="boxes='nothing': expected the name of a column of boxes"):
        _ = open_input(tmp_path / "t.parquet", image="image", boxes=("nothing", BoxCodec())).fields


def test_a_null_and_an_odd_value_of_a_column(picture, tmp_path):
    table = pa.table({"image": [picture(0), picture(1)], "objects": [None, "text"]})
    pq.write_table(table, tmp_path / "t.parquet")
    source = open_input(tmp_path / "t.parquet", boxes=("objects", BoxCodec()))
    first, second = source.entries()
    assert source.read(first).fields == {"objects": None}
    with pytest.raises(ValueError, match=r"t.parquet/1: column objects: expected things as a list"):
        source.read(second)


def test_a_changed_file_and_another_codec_make_another_plan_and_inputs_pickle(scenes, discrete):
    def source(codec="loc1024"):
        return open_input(scenes / "images", boxes=(str(scenes / "boxes.jsonl"), BoxCodec(codec)))

    first = make_plan(discrete, source()).hash
    assert make_plan(discrete, source()).hash == first != make_plan(discrete, source("loc1000")).hash
    entry = source().entries()[0]
    assert pickle.loads(pickle.dumps(source())).read(entry) == source().read(entry)
    with open(scenes / "boxes.jsonl", "a") as file:
        file.write("\n" + json.dumps({"file_name": "sub/3.png", "objects": []}))
    assert make_plan(discrete, source()).hash != first
    with pytest.raises(ValueError, match="it has changed since; plan again"):
        source().read(entry)


def test_boxes_that_do_not_fit_are_errors_of_their_picture(scenes, discrete, tmp_path):
    images = [{"id": n, "file_name": f"sub/{n}.png", "width": 128, "height": 128} for n in range(3)]
    images[1] |= {"height": 64}
    boxes = [{"image_id": 0, "bbox": [0, 0, 128.6, 64]}, {"image_id": 1, "bbox": [0, 0, 1, 1]}]
    boxes += [{"image_id": 2, "bbox": [100, 0, 64, 1]}]
    (scenes / "coco.json").write_text(json.dumps({"images": images, "annotations": boxes}))
    source = open_input(scenes / "images", boxes=(str(scenes / "coco.json"), BoxCodec()))
    summary = encode_folder(discrete, source, tmp_path / "store", ONE_THREAD)
    assert (summary.images, summary.errors) == (2, 2)
    said = "".join(path.read_text() for path in (tmp_path / "store" / "errors").iterdir())
    assert "expected the picture that was annotated, 128 x 64, or a copy" in said
    assert "expected boxes in the picture of 128 x 128, got [100.0, 0.0, 64.0, 1.0]" in said
    assert TokenStore(tmp_path / "store").rows[0]["box_ids"] == [[0, 0, 512, 1023]]  # y1 x1 y2 x2


def test_a_turned_picture_is_measured_upright(tmp_path, discrete):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "images").mkdir()
    Image.new("RGB", (40, 20)).save(tmp_path / "images" / "a.jpg", exif=exif)
    (tmp_path / "b.jsonl").write_text(json.dumps({"file_name": "a.jpg", "objects": [{"bbox": [0, 0, 10, 40]}]}))
    source = open_input(tmp_path / "images", boxes=(str(tmp_path / "b.jsonl"), BoxCodec()))
    assert source.read(source.entries()[0]).fields["box_ids"] == [[0, 0, 1023, 512]]


def test_what_makes_no_sense_is_refused(scenes, tmp_path):
    with pytest.raises(ValueError, match="expected a codec of boxes such as loc1024 or pixel336, got loc1024_points"):
        BoxCodec("loc1024_points")
    with pytest.raises(KeyError, match="loc1024"):
        BoxCodec("loc1025")
    with pytest.raises(FileNotFoundError, match="none.json"):
        BoxLists(tmp_path / "none.json")
    (tmp_path / "film.mp4").write_bytes(b"")
    for source in (tmp_path / "film.mp4", "memory://photos"):
        with pytest.raises(ValueError, match="boxes='b.json' means nothing for"):
            open_input(source, boxes=("b.json", BoxCodec()))
