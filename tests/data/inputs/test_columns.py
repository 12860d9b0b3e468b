import pyarrow as pa
import pytest

from vistok.data.inputs.columns import STORE_NAMES, find_columns, record_in

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def find(kinds, **named):
    return find_columns(pa.schema(list(kinds.items())), **named)


@pytest.mark.parametrize(
    ("kinds", "image"),
    [
        ({"photo_of_me": HF_IMAGE, "text": pa.string()}, "photo_of_me"),
        ({"anything": pa.large_binary(), "text": pa.string()}, "anything"),
        ({"mask": HF_IMAGE, "image": HF_IMAGE}, "image"),
        ({"image": pa.binary(), "picture_1": HF_IMAGE}, "picture_1"),
        ({"embedding": pa.binary(), "jpg": pa.binary()}, "jpg"),
        ({"image": pa.string(), "content": pa.binary()}, "content"),
        ({"image": pa.binary_view()}, "image"),
    ],
)
def test_the_picture_is_found_by_type_then_by_name(kinds, image):
    assert find(kinds).image == image


def test_a_column_that_is_named_is_taken():
    kinds = {"image": HF_IMAGE, "mask": HF_IMAGE, "text": pa.string(), "alt": pa.large_string(), "id": pa.int64()}
    columns = find(kinds, image="mask", caption="alt", key="id")
    assert (columns.image, columns.caption, columns.key) == ("mask", "alt", "id")
    assert columns.fields == pa.schema([("text", pa.string())]) and columns.left_out == ("image",)


@pytest.mark.parametrize(
    ("named", "why"),
    [
        ({"image": "absent"}, "image='absent'.*there are image, text, n"),
        ({"image": "text"}, "image='text'.*bytes.*string"),
        ({"caption": "n"}, "caption='n'.*text.*double"),
        ({"key": "n"}, "key='n'.*integers.*double"),
        ({"key": "absent"}, "no such column"),
    ],
)
def test_a_column_that_does_not_fit_is_an_error_that_says_what_would(named, why):
    with pytest.raises(ValueError, match=why):
        find({"image": HF_IMAGE, "text": pa.string(), "n": pa.float64()}, **named)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        (pa.schema([("text", pa.string())]), "expected a column of pictures.*text"),
        (pa.schema([("left", HF_IMAGE), ("right", HF_IMAGE)]), "left, right; say which by image="),
        (pa.schema([("left", pa.binary()), ("right", pa.binary())]), "left, right"),
        (pa.schema([("image", HF_IMAGE), ("a", pa.int8()), ("a", pa.int8())]), "different names"),
    ],
)
def test_a_table_whose_picture_cannot_be_told_is_an_error(schema, why):
    with pytest.raises(ValueError, match=why):
        find_columns(schema)


def test_caption_goes_before_text_and_only_if_it_is_text():
    assert find({"image": HF_IMAGE, "text": pa.string(), "caption": pa.string()}).caption == "caption"
    columns = find({"image": HF_IMAGE, "text": pa.string(), "caption": pa.list_(pa.string())})
    assert columns.caption == "text" and columns.carried == {"input_caption": "caption"}


def test_names_of_the_store_are_carried_under_another():
    kinds = dict.fromkeys(sorted(STORE_NAMES - {"caption"}), pa.int32())
    columns = find({"image": HF_IMAGE, "input_key": pa.int8(), "other": pa.date32(), **kinds})
    assert columns.carried["input_key"] == "input_key" and columns.carried["input_input_key"] == "key"
    assert columns.carried["other"] == "other" and columns.carried["input_width"] == "width"
    assert not STORE_NAMES & set(columns.fields.names) and len(columns.fields) == len(kinds) + 2
    assert columns.fields.field("other").type == pa.date32()


def test_columns_with_bytes_in_them_are_left_out_and_fixed_ones_are_not():
    kinds = {"image": HF_IMAGE, "crops": pa.list_(HF_IMAGE), "thumb": pa.large_binary(), "hash": pa.binary(8)}
    columns = find(kinds | {"coded": pa.dictionary(pa.int8(), pa.binary()), "box": pa.list_(pa.float32(), 4)})
    assert columns.left_out == ("crops", "thumb", "coded") and columns.fields.names == ["hash", "box"]


def test_a_row_is_its_picture_caption_and_fields():
    rows = [
        {"image": {"bytes": b"one", "path": None}, "text": "a", "size": {"w": 1}},
        {"image": {"bytes": b"two", "path": "x"}, "text": None, "size": None},
        {"image": {"bytes": None, "path": "/data/x.jpg"}, "text": "c", "size": None},
        {"image": None, "text": "d", "size": None},
    ]
    schema = pa.schema([("image", HF_IMAGE), ("text", pa.string()), ("size", pa.struct([("w", pa.int8())]))])
    batch, columns = pa.RecordBatch.from_pylist(rows, schema), find_columns(schema)
    first, second = (record_in(batch, row, columns) for row in (0, 1))
    assert (first.content, first.caption, first.fields) == (b"one", "a", {"size": {"w": 1}})
    assert (second.content, second.caption, second.fields) == (b"two", None, {"size": None})
    with pytest.raises(ValueError, match="got its path '/data/x.jpg' alone; embed the bytes"):
        record_in(batch, 2, columns)
    with pytest.raises(ValueError, match="got null"):
        record_in(batch, 3, columns)
