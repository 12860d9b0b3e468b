import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from vistok.data.diff import SampleDiff, compare_tokens, diff_stores
from vistok.data.encode import encode_folder
from vistok.data.merge import merge_stores
from vistok.data.plan import EncodeSettings
from vistok.data.shard import shard_files
from vistok.data.split import split_store
from vistok.data.store import TokenStore

SETTINGS = EncodeSettings(shard_samples=4, threads=1)


@pytest.fixture
def copy(store, tmp_path) -> Path:
    return shutil.copytree(store.path, tmp_path / "copy")


def _redefine(root: Path, **changes) -> None:
    """Change fields of a store's plan, whatever made its tokens."""
    dataset = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(dataset | changes))


def _change_tokens(root: Path, shard: int, *places: int) -> None:
    """Change the ids at these places of a shard."""
    file = shard_files(root, shard).tensors
    content = bytearray(file.read_bytes())
    with safe_open(file, "pt") as opened:
        size = 2 * len(opened.get_tensor("indices.values"))
    for place in places:
        content[len(content) - size + 2 * place] ^= 1
    file.write_bytes(content)


def test_a_store_is_the_same_as_its_copy(store, copy):
    found = diff_stores(store.path, copy)
    assert found.same and (found.equal, found.fields) == (9, {})


def test_a_plan_that_changed_no_id_is_told_and_is_no_difference(store, copy):
    _redefine(copy, batch=3, torch="3.0")
    found = diff_stores(store.path, copy)
    assert found.same and found.fields == {"batch": (8, 3), "torch": (store.dataset["torch"], "3.0")}


def test_another_tokenizer_is_named_for_every_sample(store, other_weights, photos, tmp_path):
    encode_folder(other_weights, photos, tmp_path / "other", SETTINGS)
    found = diff_stores(store.path, tmp_path / "other")
    assert found.equal == 0 and [sample.key for sample in found.different] == store.keys
    assert {sample.causes for sample in found.different} == {("fingerprint",)} and found.causes == {"fingerprint": 9}
    theirs = TokenStore(tmp_path / "other").fingerprint
    assert found.fields == {"fingerprint": (store.fingerprint, theirs)}


def test_other_pictures_under_the_same_key_are_data(store, discrete, photos, tmp_path):
    with Image.open(photos / "p4.png") as image:
        upside_down = image.rotate(180)
    upside_down.save(photos / "p4.png")
    encode_folder(discrete, photos, tmp_path / "other", replace(SETTINGS, batch=1))
    found = diff_stores(store.path, tmp_path / "other")
    assert [(sample.key, sample.causes) for sample in found.different] == [("p4.png", ("data",))]
    assert 0 < found.different[0].share <= 1 and found.equal == 8 and "batch" in found.fields


def test_samples_of_one_store_only_are_listed_and_make_inputs_a_cause(store, discrete, photos, tmp_path):
    (photos / "p0.png").rename(photos / "p00.png")
    encode_folder(discrete, photos, tmp_path / "other", SETTINGS)
    found = diff_stores(store.path, tmp_path / "other")
    assert (found.only_a, found.only_b, found.equal) == (("p0.png",), ("p00.png",), 8) and not found.same
    _change_tokens(tmp_path / "other", 1, 0)
    # Other pictures may have shared a batch.
    assert [sample.causes for sample in diff_stores(store.path, tmp_path / "other").different] == [("inputs",)]


def test_causes_come_in_the_order_tokenizer_transform_decoder_plan(store, copy):
    _change_tokens(copy, 0, 3, 5)
    _redefine(copy, threads=9, decoder="PIL", batch=2, transform="other", tokenizer="vq", seed=5)
    [sample] = diff_stores(store.path, copy).different
    assert sample == SampleDiff(
        store.keys[0], 2 / 140, None, ("tokenizer", "transform", "decoder", "batch", "seed", "threads")
    )
    assert [*diff_stores(store.path, copy).fields] == [*sample.causes]


def test_ids_that_differ_while_the_plans_agree_are_unexplained(store, copy):
    _change_tokens(copy, 2, 0)
    [sample] = diff_stores(store.path, copy).different
    assert (sample.key, sample.causes) == (store.keys[8], ("unexplained",))


def test_embeds_are_compared_by_their_largest_difference(continuous, photos, tmp_path):
    for dtype in ("float32", "bfloat16"):
        encode_folder(continuous, photos, tmp_path / dtype, replace(SETTINGS, embeds_dtype=dtype))
    found = diff_stores(tmp_path / "float32", tmp_path / "bfloat16")
    assert found.causes == {"columns": 9}
    for sample, one, other in zip(
        found.different, TokenStore(tmp_path / "float32"), TokenStore(tmp_path / "bfloat16"), strict=True
    ):
        assert sample.max_abs == float((one.embeds - other.embeds).abs().max()) > 0
        assert sample.share == float((one.embeds != other.embeds).any(dim=-1).float().mean())


def test_ids_and_embeds_have_nothing_in_common(store, continuous, photos, tmp_path):
    encode_folder(continuous, photos, tmp_path / "kl", SETTINGS)
    for sample in diff_stores(store.path, tmp_path / "kl").different:
        assert sample.causes[:2] == ("tokenizer", "fingerprint") and "columns" in sample.causes


def test_a_split_differs_from_its_source_only_in_what_it_lacks(store, tmp_path):
    split_store(store.path, tmp_path / "parts", {"a": 0.5, "b": 0.5})
    found = diff_stores(store.path, tmp_path / "parts/a")
    assert not found.different and not found.only_b and not found.fields
    assert [*found.only_a] == TokenStore(tmp_path / "parts/b").keys


def test_the_samples_of_a_merged_store_are_blamed_on_their_own_plan(store, tmp_path):
    split_store(store.path, tmp_path / "parts", {"a": 0.5, "b": 0.5})
    _redefine(tmp_path / "parts/b", decoder="PIL")
    for part in "ab":
        _change_tokens(tmp_path / "parts" / part, 0, 0)
        files = shard_files(tmp_path / "parts" / part, 0)
        record = json.loads(files.commit.read_text())
        record["sha256"][files.tensors.name] = hashlib.sha256(files.tensors.read_bytes()).hexdigest()
        files.commit.write_text(json.dumps(record))
    merge_stores([tmp_path / "parts/a", tmp_path / "parts/b"], tmp_path / "m")
    found = {sample.key: sample.causes for sample in diff_stores(store.path, tmp_path / "m").different}
    assert found == {
        TokenStore(tmp_path / "parts/a").keys[0]: ("unexplained",),
        TokenStore(tmp_path / "parts/b").keys[0]: ("decoder",),
    }


def test_tokens_that_one_side_lacks_differ():
    ids = torch.tensor([1, 2, 3, 4])
    assert compare_tokens({"indices": ids}, {"indices": ids[:3]}) == (0.25, None)
    assert compare_tokens({"indices": ids}, {"indices": torch.tensor([1, 0, 3])}) == (0.5, None)
    assert compare_tokens({"indices": ids[:0]}, {"indices": ids[:0]}) == (0.0, None)
    assert compare_tokens({"indices": ids}, {"indices": ids.to(torch.uint16)}) == (0.0, None)
    assert compare_tokens({"indices": ids}, {"embeds": torch.zeros(4, 2)}) == (1.0, None)
    assert compare_tokens({"indices": ids[:, None]}, {"indices": ids[:, None].expand(4, 2)}) == (1.0, None)


def test_a_token_differs_if_any_of_its_columns_does():
    ids, places = torch.arange(4), torch.zeros(4, 2, dtype=torch.int16)
    moved = places.clone()
    moved[2, 1] = 7
    changed = {"indices": torch.tensor([0, 1, 9, 9]), "coords": moved, "scores": torch.zeros(4)}
    assert compare_tokens({"indices": ids, "coords": places}, changed) == (0.5, None)
    assert compare_tokens({"embeds": torch.tensor([[1.0, 2.0]])}, {"embeds": torch.tensor([[1.5, 2.0]])}) == (1.0, 0.5)


def test_stores_from_before_there_were_digests_are_not_blamed_on_the_data(store, copy):
    _change_tokens(copy, 0, 0)
    for root in (store.path, copy):
        rows = pq.ParquetFile(shard_files(root, 0).rows).read().drop_columns(["digest"])
        pq.write_table(rows, shard_files(root, 0).rows)
    assert diff_stores(store.path, copy).causes == {"unexplained": 1}


def test_what_is_no_store_is_an_error(store, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing: expected a token store"):
        diff_stores(store.path, tmp_path / "nothing")
