import json
import os
import resource
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.local_files import MappedFile
from vistok.data.shard import Sample, shard_files, stored_columns, write_shard
from vistok.data.shard_header import read_header
from vistok.data.store import TokenStore
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor

LENGTHS = [[3, 0, 5], [], [4], [2, 6]]


def write_store(root: Path, shards: list[list[TokenTensor]], columns: dict[str, str]) -> TokenStore:
    root.mkdir(parents=True, exist_ok=True)
    dataset = {"format": "vistok-store", "version": 1, "plan_hash": "h", "num_shards": len(shards)}
    dataset |= {"tokenizer": "made", "fingerprint": "f", "columns": columns}
    (root / "dataset.json").write_text(json.dumps(dataset))
    for shard, items in enumerate(shards):
        samples = [
            Sample({"key": f"{shard}/{i}"}, item.spec, stored_columns(item, columns)) for i, item in enumerate(items)
        ]
        write_shard(root, shard, samples, [], header={"tokenizer": "made", "fingerprint": "f"}, plan_hash="h")
    return TokenStore(root)


def ragged_items() -> list[list[TokenTensor]]:
    """indices, embeds and scores of LENGTHS samples."""
    generator = torch.Generator().manual_seed(0)

    def item(count: int) -> TokenTensor:
        return TokenTensor(
            TokenSpec("made", 3, (900,), order="causal-1d"),
            indices=torch.randint(900, (1, count), generator=generator),
            embeds=torch.randn(1, count, 3, generator=generator),
            scores=torch.rand(1, count, generator=generator),
        )

    return [[item(count) for count in counts] for counts in LENGTHS]


@pytest.fixture
def items() -> list[TokenTensor]:
    return [item for shard in ragged_items() for item in shard]


@pytest.fixture
def ragged(tmp_path) -> TokenStore:
    return write_store(tmp_path / "s", ragged_items(), {"indices": "uint16", "embeds": "bfloat16"})


def test_a_column_gives_each_sample_in_the_dtype_of_the_store(ragged, items):
    ids, embeds, scores = (ragged.column(name) for name in ("indices", "embeds", "scores"))
    assert set(ragged.columns) == {"indices", "embeds", "scores"} and len(ids) == len(items)
    for at, item in enumerate(items):
        assert ids[at].dtype == torch.uint16 and ids[at].tolist() == item.indices[0].tolist()
        assert torch.equal(embeds[at], item.embeds[0].bfloat16())
        assert torch.equal(scores[at], item.scores[0].half())
        assert torch.equal(ragged[at].embeds, item.embeds.bfloat16().float())
    assert torch.equal(ids[-1], ids[len(items) - 1])


@pytest.mark.parametrize("index", [6, -7])
def test_a_column_refuses_an_index_out_of_range(ragged, index):
    with pytest.raises(IndexError, match="below 6"):
        ragged.column("indices")[index]
    with pytest.raises(IndexError, match="below 6"):
        ragged.column("indices").gather([0, index])


def test_writing_to_what_a_column_gives_never_reaches_the_store(ragged):
    column = ragged.column("indices")
    before = [column[at].tolist() for at in range(len(column))]
    column[0].zero_()
    column.gather([0, 2]).values.zero_()
    for values in (column.view(2), next(column.scan()).values):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 7
    assert [column[at].tolist() for at in range(len(column))] == before


def test_gather_keeps_the_order_asked_and_repeats(ragged, items):
    wanted = [5, 0, 1, 5, -3, 2]
    for indices in (wanted, torch.tensor(wanted), np.array(wanted)):
        values, offsets = ragged.column("embeds").gather(indices)
        assert offsets.dtype == torch.int64 and values.dtype == torch.bfloat16
        pieces = [values[a:b] for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
        for piece, at in zip(pieces, wanted, strict=True):
            assert torch.equal(piece, items[at].embeds[0].bfloat16())


def test_gathering_nothing_gives_no_token_of_the_right_width_and_dtype(ragged, tmp_path):
    values, offsets = ragged.column("embeds").gather([])
    assert values.shape == (0, 3) and values.dtype == torch.bfloat16 and offsets.tolist() == [0]
    empty = write_store(tmp_path / "empty", [[]], {"indices": "uint16"})
    assert empty.columns == () and empty.column("indices").gather([]).offsets.tolist() == [0]
    assert list(empty.column("indices").scan()) == []


def test_a_mask_is_not_taken_for_indices_by_gather(ragged):
    for mask in (torch.ones(6, dtype=torch.bool), [True, False]):
        with pytest.raises(TypeError, match="bool mask"):
            ragged.column("indices").gather(mask)


def test_scan_gives_every_shard_once_as_the_mapped_file(ragged, items):
    found = list(ragged.column("indices").scan())
    assert [np.diff(offsets).tolist() for _, offsets in found] == [counts for counts in LENGTHS if counts]
    assert np.concatenate([values for values, _ in found]).tolist() == [
        code for item in items for code in item.indices[0].tolist()
    ]
    assert np.shares_memory(found[0].values, ragged.column("indices").view(0))


def test_coords_of_whole_grids_are_a_column_too(tmp_path):
    spec = TokenSpec("made", 0, (9,), (2, 3), 8, (16, 24))
    whole = TokenTensor(spec, indices=torch.arange(6)[None], coords=grid_coords(2, 3))
    pruned = whole.keep(torch.tensor([[False, True, False, False, False, True]]))
    store = write_store(tmp_path / "s", [[whole, whole], [pruned]], {"indices": "uint16"})
    assert store.columns == ("indices",)
    values, offsets = store.column("coords").gather([2, 1])
    assert values.dtype == torch.int16 and offsets.tolist() == [0, 2, 8]
    assert values.tolist() == [[0, 1], [1, 2], *grid_coords(2, 3)[0].tolist()]


def test_writing_to_the_coords_of_a_sample_does_not_reach_another(tmp_path):
    spec = TokenSpec("made", 0, (9,), (1, 2), 8, (8, 16))
    whole = TokenTensor(spec, indices=torch.arange(2)[None], coords=grid_coords(1, 2))
    store = write_store(tmp_path / "s", [[whole, whole]], {"indices": "uint16"})
    store[0].coords.fill_(9)
    assert store[0].coords.tolist() == store[1].coords.tolist() == [[[0, 0], [0, 1]]]


def test_a_column_that_is_not_there_is_an_error_that_names_those_that_are(ragged):
    with pytest.raises(KeyError, match="embeds, scores.*got 'sizes'|got 'sizes'"):
        ragged.column("sizes")


def test_shards_that_store_a_column_in_two_dtypes_are_not_mixed(tmp_path):
    item = TokenTensor(TokenSpec("made", 2, order="1d"), embeds=torch.tensor([[[1.5, -2.0]]]))
    store = write_store(tmp_path / "s", [[item], [item]], {"embeds": "float16"})
    write_store(tmp_path / "other", [[item], [item]], {"embeds": "bfloat16"})
    other = shard_files(tmp_path / "other", 1).tensors
    other.rename(shard_files(store.path, 1).tensors)
    assert store[0].embeds.tolist() == store[1].embeds.tolist() == [[[1.5, -2.0]]]
    with pytest.raises(ValueError, match=r"00001\.safetensors: expected embeds as F16.*got BF16"):
        store.column("embeds").gather([0, 1])


def test_more_shards_than_a_process_may_open_files(tmp_path):
    item = TokenTensor(TokenSpec("made", 0, (9,)), indices=torch.tensor([[4, 7]]))
    store = write_store(tmp_path / "s", [[item]] * 40, {"indices": "uint16"})
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    in_use = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (in_use + 10, limits[1]))
    try:
        assert [store[at].indices.tolist() for at in range(40)] == [[[4, 7]]] * 40
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def rewrite(path: Path, change) -> None:
    """Replace the header by change(header), the data stay as they are."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8 : 8 + length]))
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def with_field(tensor: str, field: str, value):
    return lambda header: header | {tensor: header[tensor] | {field: value}}


def without(*names: str):
    return lambda header: {name: value for name, value in header.items() if name not in names}


BROKEN_HEADERS = {
    "no JSON": (lambda header: b"\xff{", "a header in JSON"),
    "deep JSON": (lambda header: b"[" * 100_000, "a header in JSON"),
    "a list": (lambda header: [header], "a JSON object"),
    "a name twice": (lambda header: b'{"a": 1, "a": 2}', "the same name twice"),
    "a dtype that is none": (with_field("indices.values", "dtype", "F4"), "with a dtype out of"),
    "a dtype of no name": (with_field("indices.values", "dtype", ["U16"]), "with a dtype out of"),
    "an offset past the end": (with_field("indices.values", "data_offsets", [0, 10**12]), "of data"),
    "offsets in reverse": (with_field("indices.values", "data_offsets", [20, 0]), "of data"),
    "a negative offset": (with_field("indices.values", "data_offsets", [-20, 0]), "all in 0"),
    "a shape that is no list": (with_field("indices.values", "shape", 10), "with a shape"),
    "a shape of floats": (with_field("indices.values", "shape", [10.0]), "with a shape"),
    "a bool for a number": (with_field("indices.values", "shape", [True]), "with a shape"),
    "an absurd shape": (with_field("indices.values", "shape", [2**47, 2**47]), "of data"),
    "a number past all use": (with_field("indices.values", "shape", [10**30, 0]), "with a shape"),
    "a tensor left out": (without("embeds.values"), "overlap or hole"),
    "two tensors in one place": (lambda header: header | {"twin": header["indices.values"]}, "overlap or hole"),
    "a column that is unknown": (lambda header: header | {"x.values": header.pop("scores.values")}, "columns out of"),
    "floats for ids": (with_field("indices.values", "dtype", "F16"), "indices with 1 or 2 axes"),
    "a column of too many axes": (with_field("scores.values", "shape", [2, 2, 5]), "scores with 1 axes|of data"),
    "no offsets": (lambda header: header | {"sizes": header.pop("indices.offsets")}, "offsets of embeds"),
    "metadata that are no strings": (with_field("__metadata__", "dim", 3), "__metadata__ of strings"),
    "no tokenizer": (
        lambda header: header | {"__metadata__": without("tokenizer")(header["__metadata__"])},
        "metadata that describes the tokens",
    ),
    "an order that is none": (with_field("__metadata__", "order", '"spiral"'), "metadata that describes"),
    "a dim that is no number": (with_field("__metadata__", "dim", '"3"'), "metadata that describes"),
    "metadata in no JSON": (with_field("__metadata__", "dim", "{"), "metadata that describes"),
}


@pytest.mark.parametrize("case", BROKEN_HEADERS)
def test_a_header_that_cannot_be_true_is_an_error_that_names_the_file_and_the_remedy(ragged, case):
    change, expected = BROKEN_HEADERS[case]
    path = shard_files(ragged.path, 0).tensors
    rewrite(path, change)
    with pytest.raises(ValueError, match=rf"00000\.safetensors: .*({expected}).*vistok store verify") as raised:
        ragged[0]
    assert len(str(raised.value)) < 1000


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_001, 0])
def test_an_absurd_header_length_is_refused_without_reading_it(ragged, length):
    path = shard_files(ragged.path, 0).tensors
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    with pytest.raises(ValueError, match=r"00000\.safetensors: expected a header"):
        ragged[0]


def test_a_file_cut_anywhere_is_refused_before_it_is_used(ragged):
    path = shard_files(ragged.path, 0).tensors
    content = path.read_bytes()
    for size in {*range(12), *range(12, len(content), 13), len(content) - 1}:
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"00000\.safetensors: expected.*vistok store verify"):
            TokenStore(ragged.path)[0]
    path.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match="expected .* bytes"):
        TokenStore(ragged.path)[0]


@pytest.mark.parametrize("ends", [[0, 9, 3, 8], [1, 3, 3, 8], [0, 3, 3, 7], [0, 3, 2**62, 8], [-5, 3, 3, 8]])
def test_offsets_that_do_not_rise_from_0_to_the_last_token_are_refused(ragged, ends):
    path = shard_files(ragged.path, 0).tensors
    extent = read_header(MappedFile(path)).tensors["indices.offsets"]
    content = bytearray(path.read_bytes())
    content[extent.start : extent.stop] = np.array(ends, "<i8").tobytes()
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected offsets of embeds to rise from 0 to 8 in 3 steps"):
        ragged[0]


def test_a_shard_of_fewer_samples_than_its_record_says_is_refused(ragged):
    path = shard_files(ragged.path, 0).commit
    path.write_text(json.dumps(json.loads(path.read_text()) | {"n_samples": 4}))
    with pytest.raises(ValueError, match="in 4 steps"):
        TokenStore(ragged.path).column("indices")[0]
    with pytest.raises(ValueError, match=r"00000\.parquet: expected 4 rows, got 3"):
        TokenStore(ragged.path).rows[0]


def test_rows_of_other_grids_than_the_tokens_are_refused(tmp_path):
    spec = TokenSpec("made", 0, (9,), (2, 3), 8, (16, 24))
    whole = TokenTensor(spec, indices=torch.arange(6)[None], coords=grid_coords(2, 3))
    store = write_store(tmp_path / "s", [[whole]], {"indices": "uint16"})
    path = shard_files(store.path, 0).rows
    rows = pq.read_table(path)
    for grid in ([10**9, 10**9], [3], [-2, -3], None):
        cells = [row | {"grid": grid} for row in rows.to_pylist()]
        pq.write_table(rows.from_pylist(cells, schema=rows.schema), path)
        with pytest.raises(ValueError, match=r"00000\.safetensors: expected.*vistok store verify"):
            TokenStore(store.path)[0]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no parquet at all"])
def test_rows_that_are_no_parquet_are_refused_by_name(ragged, content):
    shard_files(ragged.path, 0).rows.write_bytes(content)
    with pytest.raises(ValueError, match=r"00000\.parquet: expected parquet.*vistok store verify"):
        ragged[0]


def test_a_file_that_is_gone_is_an_error_that_names_it(ragged):
    shard_files(ragged.path, 3).tensors.unlink()
    assert ragged.column("indices")[0] is not None
    with pytest.raises(FileNotFoundError, match=r"00003\.safetensors: expected this file beside its commit record"):
        ragged.column("indices")[5]
    shard_files(ragged.path, 2).rows.unlink()
    with pytest.raises(FileNotFoundError, match=r"00002\.parquet"):
        TokenStore(ragged.path)[3]


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> bytes:
    store = write_store(tmp_path_factory.mktemp("made") / "s", ragged_items()[:1], {"indices": "uint16"})
    return shard_files(store.path, 0).tensors.read_bytes()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_damaged_bytes_are_read_within_the_file_or_refused(data, whole_file, tmp_path_factory):
    content = bytearray(whole_file)
    length = int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, 8 + length - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    file.write_bytes(content)
    try:
        header = read_header(MappedFile(file))
    except ValueError as error:
        assert str(file) in str(error)
    else:
        assert all(extent.stop <= len(content) for extent in header.tensors.values())
