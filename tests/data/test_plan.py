import json
import os
import shutil
from types import SimpleNamespace

import pytest

from vistok.data.claim import claim
from vistok.data.local_files import LocalFiles
from vistok.data.plan import EncodeSettings, make_plan, tokenizer_fingerprint


def test_the_same_pictures_and_settings_give_the_same_plan_wherever_they_lie(discrete, photos, tmp_path):
    shutil.copytree(photos, tmp_path / "copy")
    plan, again = make_plan(discrete, photos), make_plan(discrete, tmp_path / "copy")
    assert plan.hash == again.hash
    assert [entry.key for entry in plan.entries] == [f"p{i}.png" for i in range(7)] + ["sub/p7.png", "sub/p8.png"]


def test_shards_cut_the_sorted_pictures_and_lose_none(discrete, photos):
    plan = make_plan(discrete, photos, EncodeSettings(shard_samples=4))
    assert [len(plan.shard(shard)) for shard in range(plan.num_shards)] == [4, 4, 1]
    assert sum((plan.shard(shard) for shard in range(plan.num_shards)), ()) == plan.entries


def test_one_picture_is_a_source_too(discrete, photos):
    assert [entry.key for entry in make_plan(discrete, photos / "sub" / "p7.png").entries] == ["p7.png"]


def _touch(photos):
    os.utime(photos / "p0.png", ns=(10**18, 10**18 + 99))


def _grow(photos):
    with open(photos / "p0.png", "ab") as file:
        file.write(b"x")
    os.utime(photos / "p0.png", ns=(10**18, 10**18))


def _remove(photos):
    (photos / "p0.png").unlink()


@pytest.mark.parametrize("change", [_touch, _grow, _remove])
def test_changed_pictures_make_another_plan(discrete, photos, tmp_path, change):
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)
    change(photos)
    with pytest.raises(ValueError, match="another plan: inputs: there"):
        claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 4},
        {"batch_pixels": 9},
        {"max_pixels": 9},
        {"shard_samples": 3},
        {"threads": 1},
        {"seed": 1},
        {"device": "meta"},
        {"split": "test"},
    ],
)
def test_another_setting_in_the_same_folder_is_refused_by_name_and_changes_nothing(
    discrete, photos, tmp_path, settings
):
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)
    before = (tmp_path / "store/dataset.json").read_bytes()
    (name,) = settings
    with pytest.raises(ValueError, match=rf"\b{name}: there .*, here "):
        claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos, EncodeSettings(**settings)).dataset)
    assert (tmp_path / "store/dataset.json").read_bytes() == before


def test_another_option_of_encode_and_other_columns_are_refused_by_name(discrete, photos, tmp_path):
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)
    with pytest.raises(ValueError, match="options: there {}, here {'tile': 16}"):
        claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos, EncodeSettings(options={"tile": 16})).dataset)
    with pytest.raises(ValueError, match="columns: there .*, here .*'embeds': 'float16'"):
        claim(
            LocalFiles(tmp_path / "store"),
            make_plan(discrete, photos, EncodeSettings(columns=("indices", "embeds"))).dataset,
        )


def test_another_tokenizer_in_the_same_folder_is_refused_by_name(discrete, continuous, other_weights, photos, tmp_path):
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)
    with pytest.raises(ValueError, match="tokenizer: there 'vq_nano', here 'kl_nano'"):
        claim(LocalFiles(tmp_path / "store"), make_plan(continuous, photos).dataset)
    with pytest.raises(ValueError, match="another plan: fingerprint: there"):
        claim(LocalFiles(tmp_path / "store"), make_plan(other_weights, photos).dataset)


def test_the_same_plan_may_claim_its_folder_again(discrete, photos, tmp_path):
    settings = EncodeSettings(columns=("indices",), options={"tile": 16})
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos, settings).dataset)
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos, settings).dataset)
    assert json.loads((tmp_path / "store/dataset.json").read_text())["inputs"]["count"] == 9


def test_a_folder_with_other_files_is_not_touched(discrete, photos):
    before = sorted(photos.rglob("*"))
    with pytest.raises(ValueError, match="other files"):
        claim(LocalFiles(photos), make_plan(discrete, photos).dataset)
    assert sorted(photos.rglob("*")) == before


def test_a_claim_that_was_killed_before_its_end_does_not_block_the_folder(discrete, photos, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/dataset.json.tmp.123.1").write_text("{")
    claim(LocalFiles(tmp_path / "store"), make_plan(discrete, photos).dataset)
    assert (tmp_path / "store/dataset.json").is_file()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("batch", 0),
        ("shard_samples", 0),
        ("threads", -1),
        ("columns", ()),
        ("columns", ("coords",)),
        ("embeds_dtype", "int8"),
    ],
)
def test_settings_out_of_range_are_errors_that_name_them(name, value):
    with pytest.raises(ValueError, match=name):
        EncodeSettings(**{name: value})


def test_an_option_that_encode_lacks_is_an_error_before_anything_is_encoded(discrete, photos):
    with pytest.raises(TypeError, match="tlie.*tile"):
        make_plan(discrete, photos, EncodeSettings(options={"tlie": 16}))


def test_columns_follow_the_codebook(discrete, continuous, photos):
    assert make_plan(discrete, photos).record["columns"] == {"indices": "uint16"}
    assert make_plan(continuous, photos).record["columns"] == {"embeds": "float16"}
    both = EncodeSettings(columns=("embeds", "indices"), embeds_dtype="bfloat16")
    assert make_plan(discrete, photos, both).record["columns"] == {"indices": "uint16", "embeds": "bfloat16"}


def test_the_fingerprint_follows_weights_and_settings_and_not_the_name(discrete, other_weights):
    before = tokenizer_fingerprint(discrete)
    discrete.name = "renamed"
    assert tokenizer_fingerprint(discrete) == before
    assert tokenizer_fingerprint(other_weights) != before
    with pytest.raises(TypeError, match="SimpleNamespace"):
        tokenizer_fingerprint(SimpleNamespace())
