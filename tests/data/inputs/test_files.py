import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.inputs.entry import Entry
from vistok.data.inputs.files import in_order, suffix_of, version_of


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("a.JPG", ".jpg"),
        ("a.tar.jpg", ".jpg"),
        ("x/a.tar.GZ", ".tar.gz"),
        ("a.b.tgz", ".tgz"),
        ("a", "no suffix"),
        (".a", "no suffix"),
    ],
)
def test_files_are_counted_by_their_last_suffix_in_lower_case(name, suffix):
    assert suffix_of(name) == suffix


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "a#2", "b"]), st.integers(0, 3)), max_size=12), st.randoms())
def test_keys_are_unique_and_the_order_does_not_depend_on_the_listing(pairs, random):
    entries = [Entry(key, "file", offset) for key, offset in pairs]
    ordered = in_order(entries)
    random.shuffle(entries)
    assert in_order(entries) == ordered
    assert len({entry.key for entry in ordered}) == len(pairs)
    assert [entry.offset for entry in ordered] == sorted(offset for _, offset in pairs)


def test_a_key_that_comes_again_is_numbered():
    keys = [entry.key for entry in in_order([Entry("a", "f", 0), Entry("a#2", "f", 1), Entry("a", "f", 2)])]
    assert keys == ["a", "a#2", "a#3"]


def test_a_version_tells_size_and_time_apart(tmp_path):
    seen = set()
    for size, time in ((1, 1), (1, 2), (2, 1)):
        (tmp_path / "file").write_bytes(b"x" * size)
        os.utime(tmp_path / "file", ns=(time, time))
        seen.add(version_of((tmp_path / "file").stat()))
    assert len(seen) == 3
