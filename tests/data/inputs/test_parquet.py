import os
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistok.data.inputs.open import open_input
from vistok.data.inputs.parquet import ParquetTable

HF_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows(picture, numbers):
    return [
        {"image": {"bytes": picture(number), "path": f"{number}.png"}, "text": f"caption {number}", "label": number}
        for number in numbers
    ]


@pytest.fixture
def table(picture):
    schema = pa.schema([("image", HF_IMAGE), ("text", pa.string()), ("label", pa.int16())])
    return pa.Table.from_pylist(rows(picture, range(50)), schema=schema)


@pytest.fixture
def file(tmp_path, table) -> Path:
    """50 rows in row groups of 20, 20 and 10."""
    path = tmp_path / "in" / "a.parquet"
    path.parent.mkdir()
    pq.write_table(table, path, row_group_size=20)
    return path


def good(opened):
    return [entry for entry in opened.entries() if not entry.problem]


def problems(opened):
    return {entry.key: entry.problem for entry in opened.entries() if entry.problem}


def test_every_row_is_an_entry_with_its_picture_caption_and_fields(file, picture):
    opened = open_input(file)
    entries = opened.entries()
    assert [(entry.key, entry.source, entry.offset) for entry in entries] == [
        (f"a.parquet/{row}", "a.parquet", row) for row in range(50)
    ]
    assert opened.fields == pa.schema([("label", pa.int16())]) and opened.left_out == {}
    for row in [*range(50), 49, 0, 25, 24, 19, 20]:
        record = opened.read(entries[row])
        assert (record.content, record.caption, record.fields) == (picture(row), f"caption {row}", {"label": row})


def test_binary_columns_and_columns_by_name(tmp_path, picture):
    columns = {"png": [picture(0), picture(1)], "mask": [b"m", b"m"], "prompt": ["a", "b"], "key": ["k", "k"]}
    columns |= {"day": [date(2020, 1, 2), None]}
    pq.write_table(pa.table(columns), tmp_path / "x.parquet")
    opened = open_input(tmp_path / "x.parquet", caption="prompt", key="key")
    first, second = opened.entries()
    assert (first.key, second.key) == ("k", "k#2")
    assert opened.read(second).content == picture(1) and opened.read(second).caption == "b"
    assert opened.left_out == {"mask": 2} and opened.fields.names == ["day"]
    assert opened.read(first).fields == {"day": date(2020, 1, 2)}
    assert open_input(tmp_path / "x.parquet", image="mask").read(first).content == b"m"
    assert open_input(tmp_path / "x.parquet").fields.names == ["prompt", "input_key", "day"]


def test_a_key_that_is_null_is_file_and_row(tmp_path, picture):
    pq.write_table(pa.table({"png": [picture(0)] * 3, "id": [7, None, 7]}), tmp_path / "x.parquet")
    entries = open_input(tmp_path / "x.parquet", key="id").entries()
    assert [entry.key for entry in entries] == ["7", "x.parquet/1", "7#2"]


def test_consecutive_reads_decode_each_row_group_once(file, monkeypatch):
    decoded = []
    iter_batches = pq.ParquetFile.iter_batches

    def counting(self, *args, **kwargs):
        for batch in iter_batches(self, *args, **kwargs):
            decoded.append(batch.num_rows)
            yield batch

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counting)
    opened = open_input(file)
    entries = opened.entries()
    for near in range(0, 50, 2):
        opened.read(entries[near + 1])  # as readers do that are out of step
        opened.read(entries[near])
    assert sum(decoded) == 50 and max(decoded) < 20


def test_rows_from_the_middle_are_read_without_those_of_other_groups(file, monkeypatch):
    asked = []
    iter_batches = pq.ParquetFile.iter_batches

    def noting(self, *args, **kwargs):
        asked.append(kwargs["row_groups"])
        return iter_batches(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", noting)
    opened = open_input(file)
    opened.read(opened.entries()[30])
    assert asked == [[1]]


def test_a_file_of_another_schema_is_one_problem(file, table):
    for name, other in (
        ("b", table.drop_columns(["label"])),
        ("c", table.set_column(2, "label", table["label"].cast(pa.int64()))),
        ("d", table.select(["label", "text", "image"])),
    ):
        pq.write_table(other, file.parent / f"{name}.parquet")
    opened = open_input(file.parent)
    assert {entry.source for entry in good(opened)} == {"a.parquet", "d.parquet"}
    found = problems(opened)
    assert list(found) == ["b.parquet", "c.parquet"]
    assert "label is absent and not int16" in found["b.parquet"]
    assert "label is int64 and not int16" in found["c.parquet"]


def test_the_first_file_with_pictures_sets_the_schema(file, table):
    pq.write_table(pa.table({"captions": ["a"]}), file.parent / "0.parquet")
    opened = open_input(file.parent)
    assert len(good(opened)) == 50 and list(problems(opened)) == ["0.parquet"]


def test_columns_of_other_names_are_an_error_if_no_file_has_them(file):
    with pytest.raises(ValueError, match=r"a.parquet: image='x': there is no such column; there are image, text"):
        open_input(file, image="x").entries()
    pq.write_table(pa.table({"captions": ["a"]}), file.parent / "a.parquet")
    with pytest.raises(ValueError, match=r"a.parquet: expected a column of pictures"):
        open_input(file).entries()


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "footer", "link"])
def test_a_damaged_file_is_one_problem_and_the_others_are_read(file, damage):
    bad, whole = file.parent / "b.parquet", file.read_bytes()
    if damage == "link":
        bad.symlink_to("nowhere")
    else:
        footer = whole[:-200] + bytes(100) + whole[-100:]
        bad.write_bytes({"empty": b"", "truncated": whole[:-1], "text": b"no table", "footer": footer}[damage])
    opened = open_input(f"{file.parent}/*")
    assert len(good(opened)) == 50 and list(problems(opened)) == ["b.parquet"]
    with pytest.raises(ValueError, match=r"b\.parquet"):
        opened.read(opened.entries()[-1])


def test_a_damaged_page_is_an_error_of_the_rows_in_it(file):
    opened = open_input(file)
    entries = opened.entries()
    start = pq.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    state, content = file.stat(), bytearray(file.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    file.write_bytes(content)
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert opened.read(entries[0]).caption == "caption 0"
    with pytest.raises(ValueError, match="a.parquet row 30"):
        opened.read(entries[30])
    assert opened.read(entries[45]).caption == "caption 45"


def test_a_row_without_bytes_is_an_error_of_that_row(tmp_path, picture):
    values = [{"bytes": picture(0), "path": None}, {"bytes": None, "path": "far.png"}, None]
    pq.write_table(pa.table({"image": pa.array(values, HF_IMAGE)}), tmp_path / "x.parquet")
    opened = open_input(tmp_path / "x.parquet")
    first, second, third = opened.entries()
    with pytest.raises(ValueError, match="x.parquet row 1.*far.png.*embed the bytes"):
        opened.read(second)
    with pytest.raises(ValueError, match="x.parquet row 2.*null"):
        opened.read(third)
    assert opened.read(first).content == picture(0)


def test_a_file_that_has_changed_is_not_read(file):
    opened = open_input(file)
    entry = opened.entries()[0]
    opened.read(entry)
    os.utime(file, ns=(1, 1))
    with pytest.raises(ValueError, match="has changed since"):
        opened.read(entry)


def test_a_footer_that_claims_more_rows_than_can_be_is_refused(file, monkeypatch):
    monkeypatch.setattr("vistok.data.inputs.parquet._ROWS_IN_SMALL_FILE", -file.stat().st_size + 49)
    with pytest.raises(ValueError, match="claims 50 rows"):
        ParquetTable(file)


def test_damaged_files_give_records_or_named_errors(tmp_path, file):
    rng = np.random.default_rng(0)
    whole, outcomes = file.read_bytes(), {"read": 0, "failed": 0}
    for _ in range(100):
        content = bytearray(whole)
        for place in rng.integers(max(4, len(content) - 1500 * int(rng.integers(1, 8))), len(content), 4):
            content[place] = rng.integers(256)
        (tmp_path / "fuzz.parquet").write_bytes(content)
        opened = open_input(tmp_path / "fuzz.parquet")
        try:
            for entry in opened.entries():
                opened.read(entry)
                outcomes["read"] += 1
        except (ValueError, OSError):
            outcomes["failed"] += 1
    assert min(outcomes.values()) > 10
