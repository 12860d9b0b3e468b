import json

import pytest

from vistok.data.inputs.annotations import Thing, read_annotations, things_in

COCO = {
    "images": [{"id": 7, "file_name": "./a/x.png", "width": 40, "height": 30}, {"id": 8, "file_name": "y.png"}],
    "annotations": [
        {"image_id": 7, "category_id": 2, "bbox": [1, 2, 3, 4], "segmentation": [[0, 0, 1, 0, 1, 1]]},
        {"image_id": 7, "category_id": 9},
    ],
    "categories": [{"id": 2, "name": "cup"}],
}


def test_coco_gives_things_sizes_and_names_by_picture(tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(COCO))
    found = read_annotations(tmp_path / "c.json")
    assert [*found] == ["a/x.png", "y.png"] and found["a/x.png"].size == (30, 40) and found["y.png"] == (None, ())
    assert found["a/x.png"].things == (
        Thing("cup", (1, 2, 3, 4), [[0, 0, 1, 0, 1, 1]]),
        Thing("9", None, None),
    )


def test_lines_take_lists_of_values_or_of_things(tmp_path):
    rows = [
        {
            "file_name": "a.png",
            "objects": {"bbox": [[1, 2, 3, 4], [0, 0, 1, 1]], "category": [0, "cup"], "area": [1, 2]},
        },
        {"file_name": "b.png", "objects": [{"bbox": [1, 2, 3, 4], "label": "cup"}], "width": 8, "height": 6},
        {"file_name": "c.png", "objects": {"bbox": [], "categories": []}},
    ]
    (tmp_path / "l.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    found = read_annotations(tmp_path / "l.jsonl")
    assert [thing.label for thing in found["a.png"].things] == ["0", "cup"]
    assert found["b.png"].size == (6, 8) and found["b.png"].things[0].box == (1, 2, 3, 4) and not found["c.png"].things


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("c.json", "{", "Expecting"),
        ("c.json", "[]", "no list images"),
        ("c.json", json.dumps({**COCO, "annotations": [{"image_id": 1}]}), "annotation 0: expected the id of an image"),
        (
            "c.json",
            json.dumps({**COCO, "annotations": [{"image_id": 7, "bbox": [1, 2, 3, -4]}]}),
            "annotation 0: .*bbox",
        ),
        (
            "c.json",
            json.dumps({"images": [{"id": at, "file_name": "y.png"} for at in (1, 2)], "annotations": []}),
            "y.png is there twice",
        ),
        (
            "c.json",
            json.dumps({**COCO, "images": [{"id": 7, "file_name": "x", "width": 0, "height": 1}]}),
            "a width and",
        ),
        (
            "c.json",
            json.dumps({**COCO, "images": [{**one, "id": 7} for one in COCO["images"]]}),
            "images with an id each",
        ),
        ("c.json", json.dumps({"images": [{"file_name": "x"}], "annotations": [{}]}), "images with an id each"),
        ("c.json", json.dumps({**COCO, "images": [{"id": [7], "file_name": "x"}]}), "images with an id each"),
        ("c.json", json.dumps({**COCO, "annotations": [{"image_id": 7, "category_id": {}}]}), "unhashable"),
        ("c.json", json.dumps({**COCO, "annotations": [{"image_id": 7, "bbox": [0, 0, 1, 10**400]}]}), "too large"),
        ("l.jsonl", '{"file_name": "a.png"}', "line 1: expected an object with file_name and objects"),
        ("l.jsonl", '\n{"file_name": "a", "objects": {"bbox": [[1,2,3,4]], "category": []}}', "line 2: .*one length"),
        ("l.jsonl", '{"file_name": "a", "objects": 5}', "expected things as a list"),
        ("l.jsonl", '{"file_name": "a", "objects": [{"bbox": [1, 2]}]}', "left, top, width, height"),
    ],
)
def test_what_is_wrong_is_told_with_the_file(tmp_path, name, text, said):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=f"{name}: .*{said}"):
        read_annotations(tmp_path / name)


def test_a_struct_may_have_lists_that_are_null():
    assert things_in({"bbox": [[1, 2, 3, 4]], "category": None}) == (Thing("", (1, 2, 3, 4), None),)
