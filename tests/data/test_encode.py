import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vistok.data.encode import encode_folder, run_plan
from vistok.data.encode_shard import Schedule, batches_by_size
from vistok.data.images import open_image
from vistok.data.load import Loaded
from vistok.data.plan import EncodeSettings, make_plan
from vistok.data.shard import shard_files
from vistok.data.store import TokenStore
from vistok.data.verify import verify_store
from vistok.tokenizers.autoencoder import Autoencoder

ONE_THREAD = EncodeSettings(threads=1)  # the pictures are tiny
FOUR = replace(ONE_THREAD, shard_samples=4)


def _files(root: Path) -> dict[str, bytes]:
    """Everything in a store that must be the same bytes in every run."""
    folders = ("shards", "errors")
    found = [path for folder in folders for path in (root / folder).glob("*") if ".tmp." not in path.name]
    return {str(path.relative_to(root)): path.read_bytes() for path in found} | {
        "dataset.json": (root / "dataset.json").read_bytes()
    }


def _ids(store: TokenStore) -> dict[str, list[int]]:
    return {key: tokens.indices[0].tolist() for key, tokens in zip(store.keys, store, strict=True)}


def test_every_picture_is_stored_with_the_ids_that_it_gets_alone(discrete, photos, tmp_path):
    summary = encode_folder(discrete, photos, tmp_path / "store", FOUR)
    store = TokenStore(tmp_path / "store", tokenizer=discrete)
    assert store.keys == sorted(str(path.relative_to(photos)) for path in photos.rglob("*.png"))
    for key, tokens in zip(store.keys, store, strict=True):
        alone = discrete.encode(discrete.preprocess(open_image(photos / key))[None])
        assert torch.equal(tokens.indices, alone.indices) and tokens.spec == alone.spec
        assert torch.equal(tokens.coords, alone.coords) and tokens.embeds is None
        assert torch.equal(discrete.decode(tokens), discrete.decode(alone.replace(embeds=None)))
    assert (summary.images, summary.encoded, summary.errors, summary.shards) == (9, 9, 0, 3)
    assert summary.tokens == 3 * (140 + 64 + 60)
    assert summary.bytes == sum(path.stat().st_size for path in (tmp_path / "store/shards").iterdir())


def test_the_batch_and_the_shard_size_change_no_id(discrete, photos, tmp_path):
    runs = [{"batch": 1}, {"batch": 8}, {"batch": 2, "shard_samples": 5, "batch_pixels": 1}]
    stores = []
    for number, run in enumerate(runs):
        encode_folder(discrete, photos, tmp_path / str(number), replace(ONE_THREAD, **run))
        stores.append(_ids(TokenStore(tmp_path / str(number))))
    assert stores[0] == stores[1] == stores[2]


def test_continuous_tokens_come_back_to_float16_and_decode(continuous, photos, tmp_path):
    encode_folder(continuous, photos, tmp_path / "store", FOUR)
    store = TokenStore(tmp_path / "store", tokenizer=continuous)
    direct = continuous.encode(continuous.preprocess(open_image(photos / "p0.png"))[None])
    assert store[0].indices is None and store[0].embeds.dtype == torch.float32
    torch.testing.assert_close(store[0].embeds, direct.embeds.detach(), atol=1e-3, rtol=1e-3)
    assert continuous.decode(store[0]).shape == (1, 3, 40, 56)


def test_embeds_are_stored_beside_indices_when_asked_for(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "s", replace(ONE_THREAD, columns=("indices", "embeds")))
    tokens = TokenStore(tmp_path / "s")[0]
    torch.testing.assert_close(tokens.embeds, discrete.quantizer.lookup(tokens.indices), atol=1e-3, rtol=0)


def test_a_tile_is_recorded_in_the_spec(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "s", replace(ONE_THREAD, options={"tile": 16}))
    assert TokenStore(tmp_path / "s")[0].spec.tile == 16


def test_a_second_run_skips_what_is_committed_and_does_the_rest(discrete, photos, tmp_path):
    root = tmp_path / "store"
    encode_folder(discrete, photos, root, FOUR)
    before = _files(root)
    shard_files(root, 1).commit.unlink()
    kept = [shard_files(root, shard).commit.stat().st_mtime_ns for shard in (0, 2)]
    heard: list[int] = []
    summary = run_plan(make_plan(discrete, photos, FOUR), discrete, root, on_images=heard.append)
    assert (summary.images, summary.encoded, summary.shards_skipped) == (9, 4, 2)
    assert [shard_files(root, shard).commit.stat().st_mtime_ns for shard in (0, 2)] == kept
    assert _files(root) == before
    assert heard[0] == 5 and sum(heard) == 9


def test_a_broken_picture_is_recorded_and_its_neighbours_are_encoded(discrete, photos, tmp_path):
    encode_folder(discrete, photos, tmp_path / "whole", replace(ONE_THREAD, batch=1))
    (photos / "p1.png").write_bytes((photos / "p1.png").read_bytes()[:200])
    (photos / "p2x.png").write_bytes(b"no picture")
    summary = encode_folder(discrete, photos, tmp_path / "store", FOUR)
    expected = _ids(TokenStore(tmp_path / "whole"))
    del expected["p1.png"]
    assert _ids(TokenStore(tmp_path / "store")) == expected
    assert (summary.images, summary.errors, summary.shards) == (8, 2, 3)
    lines = (tmp_path / "store/errors/00000.jsonl").read_text().splitlines()
    errors = [json.loads(line) for line in lines]
    assert [error["key"] for error in errors] == ["p1.png", "p2x.png"]
    assert errors[0]["error"] == "ValueError" and "p1.png" in errors[0]["message"]
    assert sorted(path.name for path in (tmp_path / "store/errors").iterdir()) == ["00000.jsonl"]
    assert verify_store(tmp_path / "store") == {}


class _DislikesDark(Autoencoder):
    """Fails a whole batch because of one of its images."""

    def encode(self, images, **options):
        if bool((images.amax(dim=(1, 2, 3)) == 0).any()):
            raise FloatingPointError("too dark")
        return super().encode(images, **options)


def test_an_image_that_fails_inside_a_batch_takes_no_other_with_it(discrete, photos, tmp_path):
    Image.new("RGB", (56, 40)).save(photos / "p0dark.png")
    picky = _DislikesDark(**discrete._hub_mixin_config).eval()
    picky.load_state_dict(discrete.state_dict())
    encode_folder(picky, photos, tmp_path / "picky", ONE_THREAD)
    encode_folder(discrete, photos, tmp_path / "all", ONE_THREAD)
    expected = _ids(TokenStore(tmp_path / "all"))
    del expected["p0dark.png"]
    assert _ids(TokenStore(tmp_path / "picky")) == expected
    error = json.loads((tmp_path / "picky/errors/00000.jsonl").read_text())
    assert error == {"key": "p0dark.png", "error": "FloatingPointError", "message": "too dark"}


def test_a_shard_in_which_everything_fails_is_committed_empty(discrete, photos, tmp_path):
    for path in photos.rglob("*.png"):
        if path.name < "p4":
            path.write_bytes(b"no picture")
    summary = encode_folder(discrete, photos, tmp_path / "store", FOUR)
    store = TokenStore(tmp_path / "store")
    assert (summary.images, summary.errors, summary.shards, len(store)) == (5, 4, 3, 5)
    assert store.keys[0] == "p4.png" and len(list(store)) == 5
    assert verify_store(tmp_path / "store") == {}


def test_a_picture_that_changed_after_planning_is_an_error_and_not_stored(discrete, photos, tmp_path):
    plan = make_plan(discrete, photos, ONE_THREAD)
    Image.new("RGB", (8, 8)).save(photos / "p3.png")
    run_plan(plan, discrete, tmp_path / "store")
    assert "p3.png" not in TokenStore(tmp_path / "store").keys
    assert "changed since" in (tmp_path / "store/errors/00000.jsonl").read_text()


def test_what_a_killed_worker_left_is_neither_read_nor_in_the_way(discrete, photos, tmp_path):
    root = tmp_path / "store"
    encode_folder(discrete, photos, root, FOUR)
    before = _files(root)
    shard_files(root, 0).commit.unlink()
    shard_files(root, 0).tensors.write_bytes(b"of an older attempt")
    shard_files(root, 0).errors.parent.mkdir()
    shard_files(root, 0).errors.write_text("of an older attempt")
    (root / "shards/00000.safetensors.tmp.1234.1").write_bytes(b"half")
    assert len(TokenStore(root)) == 5
    encode_folder(discrete, photos, root, FOUR)
    assert _files(root) == before
    assert json.loads(shard_files(root, 0).commit.read_text())["attempt"] == 2


@pytest.mark.slow
def test_the_number_of_workers_changes_no_byte(discrete, photos, tmp_path):
    (photos / "p2x.png").write_bytes(b"no picture")
    heard: list[int] = []
    plan = make_plan(discrete, photos, FOUR)
    run_plan(plan, discrete, tmp_path / "one")
    summary = run_plan(plan, discrete, tmp_path / "two", Schedule(workers=2), on_images=heard.append)
    assert _files(tmp_path / "one") == _files(tmp_path / "two")
    assert (summary.images, summary.errors) == (9, 1)
    workers = {json.loads(path.read_text())["worker"] for path in (tmp_path / "two/commits").iterdir()}
    assert all(not worker.endswith(f":{os.getpid()}") for worker in workers)
    assert sum(heard) == 10


@pytest.mark.parametrize(
    ("name", "value"),
    [("workers", 0), ("decode_threads", 0), ("max_restarts", -1), ("max_error_rate", 1.5), ("max_error_rate", -0.1)],
)
def test_a_schedule_out_of_range_is_an_error_that_names_it(name, value):
    with pytest.raises(ValueError, match=f"{name} .*{value}"):
        Schedule(**{name: value})


def test_the_callers_threads_and_training_mode_are_left_as_they_were(discrete, photos, tmp_path):
    discrete.train()
    threads = torch.get_num_threads()
    encode_folder(discrete, photos, tmp_path / "store", EncodeSettings(threads=threads + 1))
    assert torch.get_num_threads() == threads and discrete.training


@settings(max_examples=25, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), max_size=40),
    batch=st.integers(1, 5),
    max_pixels=st.integers(1, 60),
)
def test_batches_hold_every_image_once_in_order_of_one_size_and_few_wait(sizes, batch, max_pixels):
    taken = []

    def source():
        for number, (height, width) in enumerate(sizes):
            taken.append(height * width)
            yield Loaded({"key": number}, torch.zeros(3, height, width))

    seen: list[int] = []
    for group in batches_by_size(source(), batch, max_pixels):
        numbers = [item.row["key"] for item in group]
        assert len({item.image.shape for item in group}) == 1 and len(group) <= batch
        assert numbers == sorted(numbers)
        # Before the group left, all but the newest image fitted.
        assert sum(taken) - sum(sizes[n][0] * sizes[n][1] for n in seen) - taken[-1] <= max_pixels
        seen += numbers
    assert sorted(seen) == list(range(len(sizes)))
