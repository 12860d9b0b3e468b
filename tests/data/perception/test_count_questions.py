"""Counting records: which category is asked about, what is said of it, and what is refused."""

import pytest

from vistok.data.perception.count_questions import BoxedPicture, CountCoT, plural_of

BOX = (0.1, 0.2, 0.5, 0.75)
PICTURE = BoxedPicture("a.png", {"dog": [BOX] * 2, "bus": [BOX], "cat": [BOX] * 9}, frozenset({"cat"}), ("berry",))


def encode(box):
    return "(" + ",".join(f"<PIXEL_{round(value * 336)}>" for value in box) + ")"


def texts(record):
    return [turn["value"] for turn in record["conversations"]]


def test_the_completely_labelled_category_with_most_boxes_is_asked_about():
    counts = CountCoT(encode)
    assert counts.category(PICTURE) == "dog"
    assert texts(counts.direct(PICTURE)) == ["<image>\nHow many dogs are there in this picture?", "2"]
    assert counts.category(PICTURE._replace(boxes={"dog": [BOX] * 16, "bus": [BOX]})) == "bus", "at most 15"


def test_boxes_come_one_a_line_and_the_count_behind_them():
    line = "(<PIXEL_34>,<PIXEL_67>,<PIXEL_168>,<PIXEL_252>)"
    lines = f"Here are the bounding boxes for the dogs:\nBounding box 1: {line}\nBounding box 2: {line}"
    counts = CountCoT(encode)
    assert texts(counts.boxes(PICTURE))[1] == lines
    assert texts(counts.reasoning(PICTURE))[1] == f"{lines}\nSo there are 2 dogs."


def test_nothing_there_is_said_in_words_and_counted_as_zero():
    empty = PICTURE._replace(boxes={})
    counts = CountCoT(encode)
    assert texts(counts.boxes(empty))[1] == texts(counts.reasoning(empty))[1] == "There are no berries in the image."
    assert texts(counts.direct(empty))[1] == "0" and counts.direct(empty)["count"] == 0
    assert counts.boxes(empty._replace(absent=())) is None


def test_boxes_are_asked_for_in_all_ways_and_always_the_same_for_a_picture():
    asked = {texts(CountCoT(encode).boxes(PICTURE._replace(image=f"{i}.png")))[0] for i in range(40)}
    assert len(asked) == 5
    assert CountCoT(encode).boxes(PICTURE) == CountCoT(encode).boxes(PICTURE)


def test_no_count_comes_more_often_than_asked():
    pictures = [PICTURE._replace(image=f"{i}.png") for i in range(5)] + [PICTURE._replace(boxes={"bus": [BOX]})]
    assert [picture.image for picture in CountCoT(encode).chosen(pictures, each=2)] == ["0.png", "1.png", "a.png"]


def test_boxes_in_pixels_are_refused():
    with pytest.raises(ValueError, match=r"a.png: expected boxes .* in 0..1, got \[3, 4, 50, 60\]; divide"):
        CountCoT(encode).boxes(PICTURE._replace(boxes={"dog": [(3, 4, 50, 60)]}))


@pytest.mark.parametrize(("name", "plural"), [("box", "boxes"), ("berry", "berries"), ("boy", "boys"), ("dog", "dogs")])
def test_plurals(name, plural):
    assert plural_of(name) == plural
