import pickle
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vistok.data.inputs.open import open_input

ANOTHER_PROCESS = """
import pickle, sys
from vistok.data.inputs.open import open_input
pickled, source = pickle.load(sys.stdin.buffer)
opened = open_input(source)
listed = [opened.entries(), pickled.entries(), [pickled.read(entry) for entry in opened.entries()]]
sys.stdout.buffer.write(pickle.dumps(listed))
"""


def arrow(path, table):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
        stream.write_table(table, max_chunksize=7)
    return path


@pytest.fixture(params=["folder", "pattern", "tar", "parquet", "arrow"])
def source(request, tmp_path, pictures, write_tar, picture):
    """One input of each kind."""
    numbers = range(40)
    table = pa.table({"image": [picture(n) for n in numbers], "text": [str(n) for n in numbers], "n": numbers})
    if request.param == "folder":
        (pictures / "b.txt").write_text("a caption")
        (pictures / "metadata.jsonl").write_text('{"file_name": "c.jpeg", "n": 1}')
        return pictures
    if request.param == "pattern":
        return f"{pictures}/**/*.*"
    if request.param == "tar":
        return write_tar(tmp_path / "x.tar", [(f"{n}.png", picture(n)) for n in numbers] + [("7.json", b"{}")])
    if request.param == "parquet":
        pq.write_table(table, tmp_path / "x.parquet", row_group_size=9)
        return tmp_path / "x.parquet"
    return arrow(tmp_path / "x.arrow", table)


def test_another_process_lists_and_reads_the_same(source):
    opened = open_input(source)
    entries = opened.entries()
    records = [opened.read(entry) for entry in entries]
    assert opened.entries() == entries == open_input(source).entries()
    asked = pickle.dumps((opened, source))  # after reading: open files stay here
    done = subprocess.run([sys.executable, "-c", ANOTHER_PROCESS], input=asked, capture_output=True, check=True)
    assert pickle.loads(done.stdout) == [entries, entries, records]


def test_threads_read_what_one_reads(source):
    opened = open_input(source)
    entries = opened.entries() * 4
    alone = [open_input(source).read(entry) for entry in entries[: len(entries) // 4]] * 4
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(opened.read, entries)) == alone


def test_entries_are_sorted_by_source_and_offset_and_keys_are_unique(source):
    entries = open_input(source).entries()
    assert entries == sorted(entries, key=lambda entry: (entry.source, entry.offset))
    assert len({entry.key for entry in entries}) == len(entries) > 0


def test_opened_twice_an_input_is_the_same(source):
    assert open_input(source) == open_input(source) == pickle.loads(pickle.dumps(open_input(source)))


def test_paths_are_taken_as_text_too(pictures):
    assert open_input(str(pictures)).entries() == open_input(pictures).entries()


def test_a_path_with_brackets_that_is_there_is_no_pattern(tmp_path, picture):
    (tmp_path / "a[1]").mkdir()
    (tmp_path / "a[1]" / "x.png").write_bytes(picture(0))
    assert [entry.key for entry in open_input(tmp_path / "a[1]").entries()] == ["x.png"]


@pytest.mark.parametrize("name", ["nowhere", "nowhere/x.tar"])
def test_what_is_not_there_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"{name}.*expected pictures"):
        open_input(name)


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://host/photos", "see --urls"),
        ("https://h/*.tar", "see --urls"),
    ],
)
def test_a_url_whose_pictures_cannot_be_listed_is_refused_with_the_remedy(url, said):
    with pytest.raises(ValueError, match=f"{re.escape(url)}: .*{said}"):
        open_input(url)


def test_a_file_url_is_its_path(pictures):
    assert open_input(f"file://{pictures}") == open_input(pictures)


@pytest.mark.parametrize("name", ["nowhere/*.png", "*.png"])
def test_a_pattern_without_matches_is_an_error_that_names_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"no file matches {re.escape(name)}"):
        open_input(name)


def test_a_pattern_that_matches_nothing_of_use_lists_what_would_be(pictures):
    (pictures / "notes.md").touch()
    with pytest.raises(ValueError, match=r"\*\.md: expected pictures .*found none"):
        open_input(f"{pictures}/*.md")


def test_a_folder_that_holds_nothing_of_use_lists_what_would_be(tmp_path):
    (tmp_path / "notes.md").touch()
    with pytest.raises(ValueError, match=r"expected pictures \(\.jpg.*\.tar.*\.parquet.*Hugging Face.*found none"):
        open_input(tmp_path)
    with pytest.raises(ValueError, match="notes.md.*found none"):
        open_input(tmp_path / "notes.md")
    (tmp_path / "gone").symlink_to("nowhere")
    with pytest.raises(ValueError, match="found none; gone: .*broken link"):
        open_input(tmp_path)


def test_things_of_two_kinds_are_an_error_that_says_how_to_name_one(pictures, write_tar, picture):
    write_tar(pictures / "sub" / "x.tar", [("a.png", picture(0))])
    with pytest.raises(ValueError, match=r"found 3 pictures and 1 tar files; name one by a pattern, such as '\*.tar'"):
        open_input(pictures)
    with pytest.raises(ValueError, match="pictures and 1 tar"):
        open_input(f"{pictures}/**/*")
    assert [entry.key for entry in open_input(f"{pictures}/**/*.tar").entries()] == ["sub/x.tar/a"]


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.tar.zst"])
def test_a_compressed_archive_is_an_error_that_says_why(tmp_path, name):
    (tmp_path / name).touch()
    for source in (tmp_path / name, tmp_path):
        with pytest.raises(ValueError, match=f"{name}: expected a plain .tar.*decompress it"):
            open_input(source)


def test_an_option_that_means_nothing_for_a_kind_is_an_error(pictures, tmp_path, write_tar, picture):
    archive = write_tar(tmp_path / "x.tar", [("a.png", picture(0))])
    pq.write_table(pa.table({"png": [picture(0)]}), tmp_path / "x.parquet")
    for source, kind in ((pictures, "pictures"), (archive, "tar files")):
        for option in ("image", "caption", "key", "split"):
            with pytest.raises(ValueError, match=f"{option}='x' means nothing for {kind}; leave it out"):
                open_input(source, **{option: "x"})
    with pytest.raises(ValueError, match="split='train' means nothing for Parquet files"):
        open_input(tmp_path / "x.parquet", split="train")


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(pictures, monkeypatch):
    def refusing(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.scandir", refusing)
    monkeypatch.setattr("os.listdir", refusing)
    for source in (pictures, f"{pictures}/*"):
        with pytest.raises(PermissionError, match="pictures"):
            open_input(source)
