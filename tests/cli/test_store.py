import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.cli.main import main
from vistok.data.encode import encode_folder
from vistok.data.plan import EncodeSettings
from vistok.data.shard import shard_files
from vistok.data.store import TokenStore


@pytest.fixture(scope="module")
def encoded(tmp_path_factory) -> Path:
    """Four pictures in shards of two, and one file that is no picture. Do not write into it: copy it."""
    folder = tmp_path_factory.mktemp("encoded")
    (folder / "photos").mkdir()
    for number in range(4):
        pixels = data.astronaut()[30 * number : 30 * number + 30, 40:90]
        Image.fromarray(pixels).save(folder / f"photos/p{number}.png")
    (folder / "photos/bad.png").write_bytes(b"no picture")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        tokenizer = vistok.tokenizer("vq_nano", **vistok.info("tokenizer", "vq_nano").tiny).eval()
    encode_folder(tokenizer, folder / "photos", folder / "store [x]", EncodeSettings(shard_samples=2, threads=1))
    return folder / "store [x]"


@pytest.fixture
def store(encoded, tmp_path) -> Path:
    return shutil.copytree(encoded, tmp_path / "store [x]")


def _run(capsys, *words: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = main(["store", *map(str, words)])
    said = capsys.readouterr()
    return code, " ".join(said.out.split()), said.err


def test_info_tells_failed_samples_by_reason_columns_captions_and_split(store, tmp_path, capsys):
    code, out, _ = _run(capsys, "info", store, "--json", tmp_path / "info.json")
    facts = json.loads((tmp_path / "info.json").read_text())
    assert code == 0 and "store [x]" in out and "indices uint16" in out
    assert (facts["samples"], facts["errors"], facts["shards_committed"], facts["shards_planned"]) == (4, 1, 3, 3)
    assert sum(facts["errors_by_reason"].values()) == 1 and next(iter(facts["errors_by_reason"])) in out
    assert (facts["columns"], facts["captions"], facts["user_columns"]) == ({"indices": "uint16"}, 0, {})
    assert facts["split"] is None and facts["merged_from"] == []


def test_gc_lists_and_deletes(store, tmp_path, capsys):
    left = store / "shards/00000.parquet.tmp.7.1"
    left.write_bytes(b"left")
    code, out, _ = _run(capsys, "gc", store, "--dry-run")
    assert (code, left.exists()) == (0, True)
    assert out.startswith("shards/00000.parquet.tmp.7.1: temporary file") and out.endswith("4 bytes would be deleted")
    code, out, _ = _run(capsys, "gc", store, "--json", tmp_path / "gc.json")
    assert (code, left.exists()) == (0, False) and out.endswith("1 files, 4 bytes deleted")
    assert json.loads((tmp_path / "gc.json").read_text())["bytes"] == 4


def test_split_merge_and_diff_come_back_to_where_they_began(store, tmp_path, capsys):
    parts, merged = tmp_path / "parts", tmp_path / "merged"
    words = ["split", store, parts, "--parts", "train=0.5", "val=0.5", "--seed", 1]
    assert _run(capsys, *words, "--json", tmp_path / "split.json")[0] == 0
    numbers = json.loads((tmp_path / "split.json").read_text())
    assert sum(part["samples"] for part in numbers.values()) == 4 and 0 < numbers["val"]["samples"] < 4
    assert "split val" in _run(capsys, "info", parts / "val")[1].replace("│", "").replace("  ", " ")
    code, out, _ = _run(capsys, "diff", store, parts / "val", "--json", tmp_path / "diff.json")
    assert code == 1 and not json.loads((tmp_path / "diff.json").read_text())["same"]
    assert _run(capsys, "merge", parts / "train", parts / "val", merged, "--json", tmp_path / "merge.json")[0] == 0
    assert json.loads((tmp_path / "merge.json").read_text())["samples"] == 4
    assert _run(capsys, "diff", store, merged)[0] == 0 and _run(capsys, "verify", merged)[0] == 0


def test_diff_tells_what_differs_and_advises_to_verify(store, tmp_path, capsys):
    other = shutil.copytree(store, tmp_path / "other")
    file = shard_files(other, 2).tensors
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    code, out, _ = _run(capsys, "diff", store, other, "--json", tmp_path / "diff.json")
    found = json.loads((tmp_path / "diff.json").read_text())
    assert code == 1 and "unexplained" in out and "run `vistok store verify`" in out and "p3.png" in out
    assert (found["equal"], found["causes"], found["different"][0]["key"]) == (3, {"unexplained": 1}, "p3.png")


@pytest.mark.parametrize("to", ["parquet", "webdataset"])
def test_export_tells_what_it_wrote(store, tmp_path, to, capsys):
    code, out, _ = _run(capsys, "export", store, tmp_path / "out", "--to", to, "--json", tmp_path / "out.json")
    facts = json.loads((tmp_path / "out.json").read_text())
    assert code == 0 and (facts["samples"], facts["files"]) == (4, 3)
    assert facts["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())
    code, _, err = _run(capsys, "export", store, tmp_path / "out", "--to", to)
    assert code == 1 and "out: exists" in err


def test_incomplete_stores_are_taken_when_that_is_said(store, tmp_path, capsys):
    shard_files(store, 1).commit.unlink()
    for words in (["merge", store], ["split", store], ["export", store]):
        more = {"merge": [], "split": ["--parts", "all=1"], "export": ["--to", "parquet"]}[words[0]]
        out = tmp_path / words[0]
        code, _, err = _run(capsys, *words, out, *more)
        assert code == 1 and "--allow-incomplete" in err and not out.exists()
        assert _run(capsys, *words, out, *more, "--allow-incomplete")[0] == 0
    assert len(TokenStore(tmp_path / "merge")) == len(TokenStore(tmp_path / "split/all")) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["merge", "{store}"], "expected stores and the folder of the new one"),
        (["split", "{store}", "out", "--parts", "train"], "expected parts such as train=0.9, got 'train'"),
        (["split", "{store}", "out", "--parts", "a=0.5", "a=0.5"], "every part once, got 'a' twice"),
        (["split", "{store}", "out", "--parts", "a=0.5"], "add up to 1"),
        (["export", "{store}", "{store}/out", "--to", "parquet"], "apart from"),
        (["export", "{store}", "out", "--to", "csv"], "csv"),
        (["gc", "{store}/shards"], "expected a token store"),
        (["diff", "{store}", "{store}/shards"], "expected a token store"),
    ],
)
def test_mistakes_are_told_in_one_line(store, words, said, capsys):
    code, _, err = _run(capsys, *(word.format(store=store) for word in words))
    assert code in (1, 2) and said in err and "Traceback" not in err


def test_every_verb_refuses_a_store_of_a_newer_version(store, tmp_path, capsys):
    dataset = json.loads((store / "dataset.json").read_text())
    (store / "dataset.json").write_text(json.dumps(dataset | {"version": 99}))
    out = tmp_path / "out"
    for words in (
        *(["info", store], ["verify", store], ["gc", store], ["merge", store, out], ["diff", store, store]),
        ["split", store, out, "--parts", "all=1"],
        ["export", store, out, "--to", "parquet"],
    ):
        code, _, err = _run(capsys, *words)
        assert code == 1 and "got 99; update vistok" in err and not out.exists()
