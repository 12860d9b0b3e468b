import json
import subprocess
import sys

import pyarrow as pa
import pytest

from vistok.data.inputs.open import open_input


@pytest.fixture
def hugging_face(tmp_path, monkeypatch):
    """The `datasets` library, its home in a temporary folder."""
    for name in ("HF_HOME", "HF_DATASETS_CACHE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    datasets.disable_progress_bars()
    return datasets


@pytest.fixture
def dataset(hugging_face, tmp_path, picture):
    for number in range(7):
        (tmp_path / f"{number}.png").write_bytes(picture(number))
    features = hugging_face.Features(
        image=hugging_face.Image(),
        caption=hugging_face.Value("string"),
        label=hugging_face.ClassLabel(names=["a", "b"]),
    )
    columns = {"image": [str(tmp_path / f"{number}.png") for number in range(7)]}
    columns |= {"caption": [f"caption {number}" for number in range(7)], "label": [0, 1] * 3 + [None]}
    return hugging_face.Dataset.from_dict(columns, features=features)


@pytest.fixture
def saved(dataset, tmp_path):
    dataset.save_to_disk(tmp_path / "saved", num_shards=2)
    return tmp_path / "saved"


def keys(source, **options):
    return [entry.key for entry in open_input(source, **options).entries()]


def test_a_saved_data_set_is_read_row_by_row(saved, picture):
    opened = open_input(saved)
    entries = opened.entries()
    names = ["data-00000-of-00002.arrow"] * 4 + ["data-00001-of-00002.arrow"] * 3
    assert [entry.key for entry in entries] == [
        f"{name}/{row}" for name, row in zip(names, [0, 1, 2, 3, 0, 1, 2], strict=True)
    ]
    assert opened.fields == pa.schema([("label", pa.int64())]) and opened.left_out == {}
    for number, entry in enumerate(entries):
        record = opened.read(entry)
        assert (record.content, record.caption) == (picture(number), f"caption {number}")
        assert record.fields == {"label": None if number == 6 else number % 2}


def test_columns_can_be_named(saved):
    assert keys(saved, key="label")[:3] == ["0", "1", "0#2"]
    with pytest.raises(ValueError, match="caption='label'"):
        open_input(saved, caption="label").entries()


def test_a_selection_that_was_saved_is_read_in_its_order(dataset, tmp_path):
    dataset.select([5, 2]).save_to_disk(tmp_path / "few")
    opened = open_input(tmp_path / "few")
    assert [opened.read(entry).caption for entry in opened.entries()] == ["caption 5", "caption 2"]


def test_of_a_dict_of_splits_one_is_named(hugging_face, dataset, tmp_path):
    splits = hugging_face.DatasetDict(train=dataset.select(range(4)), test=dataset.select(range(4, 7)))
    splits.save_to_disk(tmp_path / "dict")
    opened = open_input(tmp_path / "dict", split="test")
    entries = opened.entries()
    assert [entry.key for entry in entries] == [f"test/data-00000-of-00001.arrow/{row}" for row in range(3)]
    assert opened.read(entries[0]).caption == "caption 4"
    assert len(keys(tmp_path / "dict" / "train")) == 4
    for split, given in ((None, "none was given"), ("dev", "got 'dev'"), ("../dict/test", "got")):
        with pytest.raises(ValueError, match=f"expected split= one of train, test, {given}"):
            open_input(tmp_path / "dict", split=split)
    with pytest.raises(ValueError, match="not cut into splits"):
        open_input(tmp_path / "dict" / "test", split="test")


def test_pictures_that_are_only_paths_are_errors_that_say_so(hugging_face, tmp_path, picture):
    (tmp_path / "data").mkdir()
    columns = {"image": [{"bytes": None, "path": "/far/x.png"}, {"bytes": picture(1), "path": None}]}
    table = pa.table(columns)
    with pa.OSFile(str(tmp_path / "data" / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table)
    opened = open_input(tmp_path / "data" / "x.arrow")
    first, second = opened.entries()
    with pytest.raises(ValueError, match="/far/x.png.*embed the bytes"):
        opened.read(first)
    assert opened.read(second).content == picture(1)


@pytest.mark.parametrize("damage", ["gone", "empty", "truncated", "text"])
def test_a_damaged_file_is_one_problem_and_the_others_are_read(saved, damage):
    bad = saved / "data-00000-of-00002.arrow"
    content = {"gone": b"", "empty": b"", "truncated": bad.read_bytes()[:2000], "text": b"no arrow " * 99}[damage]
    bad.unlink()
    if damage != "gone":
        bad.write_bytes(content)
    first, *others = open_input(saved).entries()
    assert first.key == bad.name and first.problem
    assert len(others) == 3 and not any(entry.problem for entry in others)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ("{", "expected JSON"),
        ("[]", "expected a JSON object"),
        ("{}", "expected names of files"),
        (json.dumps({"_data_files": [{"filename": "../../etc/passwd"}]}), "expected names of files beside it"),
        (json.dumps({"_data_files": [{"filename": ".."}]}), "expected names of files beside it"),
        (json.dumps({"_data_files": [], "_indices_data_files": [{"filename": "x"}]}), "flatten_indices"),
    ],
)
def test_a_state_file_that_makes_no_sense_is_an_error_that_names_it(saved, state, why):
    (saved / "state.json").write_text(state)
    with pytest.raises(ValueError, match=why):
        open_input(saved)


@pytest.mark.parametrize("splits", ['{"splits": ["../x"]}', '{"splits": 3}', "nonsense"])
def test_a_list_of_splits_that_makes_no_sense_is_an_error(tmp_path, splits):
    (tmp_path / "dataset_dict.json").write_text(splits)
    with pytest.raises(ValueError, match="dataset_dict.json"):
        open_input(tmp_path, split="../x")


def test_offsets_that_lead_out_of_the_file_are_errors_of_their_rows(tmp_path, picture):
    offsets = pa.py_buffer(b"".join(number.to_bytes(4, "little") for number in (0, 4, 10**9, 8)))
    image = pa.Array.from_buffers(pa.binary(), 3, [None, offsets, pa.py_buffer(b"12345678")])
    batch = pa.record_batch([image], ["image"])
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as file, pa.ipc.new_stream(file, batch.schema) as stream:
        stream.write_batch(batch)
    opened = open_input(tmp_path / "x.arrow")
    first, second, third = opened.entries()
    assert opened.read(first).content == b"1234"
    for entry in (second, third):
        with pytest.raises(ValueError, match=r"x\.arrow row"):
            opened.read(entry)


def test_the_datasets_library_is_not_imported(saved):
    code = (
        "import sys; from vistok.data.inputs.open import open_input; source = open_input(sys.argv[1]); "
        "source.read(source.entries()[0]); assert 'datasets' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code, str(saved)], check=True)
