import json
import os
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.cli.decode import picture_names
from vistok.cli.main import main
from vistok.data.store import TokenStore


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vistok.tokenizer("vq_nano", **vistok.info("tokenizer", "vq_nano").tiny).save_pretrained(folder)
    return folder


@pytest.fixture
def photos(tmp_path) -> Path:
    folder = tmp_path / "photos"
    (folder / "sub [b]").mkdir(parents=True)
    pixels = data.astronaut()
    for number, name in enumerate(["a.png", "b.jpg", "b.png", "sub [b]/c.png"]):
        Image.fromarray(pixels[30 * number : 30 * number + 30, 40:90]).save(folder / name)
    return folder


@pytest.fixture
def store(photos, checkpoint, tmp_path) -> Path:
    assert (
        main(["encode", str(photos), str(tmp_path / "store"), "--checkpoint", str(checkpoint), "--threads", "1"]) == 0
    )
    return tmp_path / "store"


def test_encode_writes_a_store_and_its_numbers(photos, checkpoint, tmp_path, capsys):
    (photos / "bad.png").write_bytes(b"no picture")
    numbers = tmp_path / "numbers.json"
    words = f"encode {photos} {tmp_path}/store --checkpoint {checkpoint} --batch 2 --shard-samples 3 --threads 1"
    assert main([*words.split(" "), "--tile", "16", "--workers", "1", "--json", str(numbers)]) == 0
    written = json.loads(numbers.read_text())
    assert {name: written[name] for name in ("images", "encoded", "errors", "shards", "tokens", "workers")} == {
        "images": 4,
        "encoded": 4,
        "errors": 1,
        "shards": 2,
        "tokens": 4 * 8 * 13,
        "workers": 1,
    }
    assert written["bytes"] > 0 and written["seconds"] > 0 and written["images_per_second"] > 0
    said = capsys.readouterr()
    assert "4 images" in said.err and "errors/*.jsonl" in said.err and said.out == ""
    assert TokenStore(tmp_path / "store")[0].spec.tile == 16


def test_encode_goes_on_and_refuses_another_batch_by_name(photos, checkpoint, store, capsys):
    words = ["encode", str(photos), str(store), "--checkpoint", str(checkpoint), "--threads", "1"]
    capsys.readouterr()
    assert main(words) == 0
    assert "(1 of 1 shards were there)" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--batch", "3"]) == 1
    assert "batch: there 8, here 3" in capsys.readouterr().err


def test_encode_fails_if_no_picture_could_be_encoded(checkpoint, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no picture")
    assert main(["encode", str(tmp_path / "bad.png"), str(tmp_path / "s"), "--checkpoint", str(checkpoint)]) == 1


def test_encode_names_a_tokenizer_that_does_not_exist(photos, tmp_path, capsys):
    assert main(["encode", str(photos), str(tmp_path / "s"), "--tokenizer", "vq_nono"]) == 1
    assert "did you mean vq_nano" in capsys.readouterr().err


def test_decode_writes_each_sample_under_its_key(photos, store, checkpoint, tmp_path):
    out = tmp_path / "out"
    assert main(["decode", str(store), str(out), "--checkpoint", str(checkpoint), "--batch", "3"]) == 0
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == ["a.png", "b.jpg.png", "b.png.png", "sub [b]/c.png"]
    tokenizer = vistok.tokenizer("vq_nano", checkpoint=checkpoint)
    with torch.inference_mode():
        expected = tokenizer.decode(TokenStore(store)[3])[0]
    with Image.open(out / "sub [b]/c.png") as written:
        pixels = torch.from_numpy(np.array(written)).permute(2, 0, 1) / 255
    torch.testing.assert_close(pixels, expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_decode_overwrites_only_when_told_to(store, checkpoint, tmp_path, capsys):
    words = ["decode", str(store), str(tmp_path / "out"), "--checkpoint", str(checkpoint)]
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_bytes(b"mine")
    assert main(words) == 1
    assert "a.png exists" in capsys.readouterr().err
    assert os.listdir(tmp_path / "out") == ["a.png"] and (tmp_path / "out/a.png").read_bytes() == b"mine"
    assert main([*words, "--overwrite", "true"]) == 0
    with Image.open(tmp_path / "out/a.png") as written:
        assert written.size == (50, 30)


def test_decode_refuses_another_tokenizer_with_both_names(store, tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        vistok.tokenizer("kl_nano", **vistok.info("tokenizer", "kl_nano").tiny).save_pretrained(tmp_path / "kl")
    words = [
        "decode",
        str(store),
        str(tmp_path / "out"),
        "--tokenizer",
        "kl_nano",
        "--checkpoint",
        str(tmp_path / "kl"),
    ]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "vq_nano" in said and "kl_nano" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("keys", "names"),
    [
        (["a.jpg", "s/a.png"], ["a.png", "s/a.png"]),
        (["a.jpg", "a.png"], ["a.jpg.png", "a.png.png"]),
        (["A.jpg", "a.webp"], ["A.jpg.png", "a.webp.png"]),
        (["a.tar.gif"], ["a.tar.png"]),
        ([], []),
    ],
)
def test_every_key_has_its_own_file(keys, names):
    assert picture_names(keys) == names


@pytest.mark.parametrize("keys", [["../a.png"], ["/a.png"], ["a/../../b.png"], [""], ["a.jpg", "a.png", "a.png.webp"]])
def test_keys_that_leave_the_folder_or_meet_on_one_file_are_errors(keys):
    with pytest.raises(ValueError, match="expected"):
        picture_names(keys)


def test_store_info_shows_what_there_is(store, tmp_path, capsys):
    assert main(["store", "info", str(store), "--json", str(tmp_path / "info.json")]) == 0
    said = capsys.readouterr().out
    assert "vq_nano" in said and TokenStore(store).fingerprint[:16] in said and "416" in said
    facts = json.loads((tmp_path / "info.json").read_text())
    assert (facts["samples"], facts["tokens"], facts["shards_committed"], facts["errors"]) == (4, 416, 1, 0)


def test_store_verify_passes_a_sound_store_and_names_every_bad_shard(photos, checkpoint, tmp_path, capsys):
    words = ["encode", str(photos), str(tmp_path / "s"), "--checkpoint", str(checkpoint), "--shard-samples", "1"]
    words += ["--threads", "1"]
    assert main(words) == 0
    assert main(["store", "verify", str(tmp_path / "s")]) == 0
    assert "4 of 4 shards committed, 0 bad" in capsys.readouterr().out
    for name in ("00001.safetensors", "00003.parquet"):
        path = tmp_path / "s/shards" / name
        content = bytearray(path.read_bytes())
        content[-9] ^= 4
        path.write_bytes(content)
    assert main(["store", "verify", str(tmp_path / "s"), "--json", str(tmp_path / "bad.json")]) == 1
    said = capsys.readouterr().out
    assert "shard 00001: 00001.safetensors" in said and "shard 00003: 00003.parquet" in said and "2 bad" in said
    assert list(json.loads((tmp_path / "bad.json").read_text())) == ["00001", "00003"]


def test_a_folder_that_is_no_store_is_an_error(tmp_path, capsys):
    for verb in (["store", "info"], ["store", "verify"]):
        assert main([*verb, str(tmp_path)]) == 1
        assert "dataset.json" in capsys.readouterr().err


def test_several_tokenizers_write_a_store_each_in_one_pass(photos, checkpoint, store, tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vistok.tokenizer("kl_nano", **vistok.info("tokenizer", "kl_nano").tiny).save_pretrained(tmp_path / "kl")
    words = ["encode", str(photos), str(tmp_path / "both"), "--tokenizer", "vq_nano", "--tokenizer", "kl_nano"]
    words += ["--threads", "1", "--json", str(tmp_path / "numbers.json")]
    assert main([*words, "--checkpoint", str(checkpoint), str(tmp_path / "kl")]) == 0
    numbers = json.loads((tmp_path / "numbers.json").read_text())["stores"]
    assert [(one["tokenizer"], one["images"]) for one in numbers] == [("vq_nano", 4), ("kl_nano", 4)]
    assert TokenStore(tmp_path / "both" / "kl_nano").columns == ("embeds",)
    for name in ("dataset.json", "shards/00000.safetensors", "shards/00000.parquet"):
        assert (tmp_path / "both" / "vq_nano" / name).read_bytes() == (store / name).read_bytes()
    capsys.readouterr()
    assert main([*words, "--checkpoint", str(checkpoint)]) == 1
    assert "--checkpoint for all of them or for none" in " ".join(capsys.readouterr().err.split())


def test_a_store_behind_a_url_is_written_checked_and_cleaned(photos, checkpoint, tmp_path, capsys):
    url = "memory://cli/store"
    try:
        assert main(["encode", str(photos), url, "--checkpoint", str(checkpoint), "--threads", "1"]) == 0
        assert main(["store", "info", url]) == 0 and main(["store", "verify", url]) == 0
        assert "1 of 1 shards committed, 0 bad" in capsys.readouterr().out
        fsspec.filesystem("memory").rm("/cli/store/commits/00000.json")
        assert main(["store", "gc", url, "--dry-run"]) == 0 and "0 files" in capsys.readouterr().out
        assert main(["store", "gc", url, "--min-age", "0"]) == 0 and "2 files" in capsys.readouterr().out
    finally:
        fsspec.filesystem("memory").rm("/cli", recursive=True)


def test_urls_are_fetched_by_the_rules_that_are_given(checkpoint, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("http://127.0.0.1:9/a.png\n")
    words = ["encode", str(tmp_path / "list.txt"), str(tmp_path / "store"), "--checkpoint", str(checkpoint)]
    assert main([*words, "--urls", "--threads", "1"]) == 1  # nothing is encoded
    errors = tmp_path / "store/errors/00000.jsonl"
    assert "no public address" in errors.read_text()
    assert main([*words, "--urls", "--threads", "1", "--retry-errors", "--url-schemes", "https"]) == 1
    assert "expected a URL of https, got 'http'" in errors.read_text()
    assert main([*words, "--urls", "--url-schemes", "file"]) == 1
    assert "expected schemes out of http, https, got file" in capsys.readouterr().err


def test_boxes_and_masks_become_columns(photos, checkpoint, tmp_path, capsys):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vistok.codec("seg128", **vistok.info("codec", "seg128").tiny).save_pretrained(tmp_path / "seg")
    outline = [[5, 6, 45, 6, 45, 24, 5, 24]]
    thing = {"bbox": [5, 6, 40, 18], "category": "hat", "segmentation": outline}
    (tmp_path / "things.jsonl").write_text(json.dumps({"file_name": "b.jpg", "objects": [thing]}))
    words = ["encode", str(photos), str(tmp_path / "store"), "--checkpoint", str(checkpoint), "--threads", "1"]
    things = str(tmp_path / "things.jsonl")
    words += ["--boxes", things, "--box-codec", "pixel336", "--masks", things]
    assert main(words) == 1 and "give some with --mask-checkpoint" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--mask-checkpoint", str(tmp_path / "seg")]) == 0
    assert "pictures without boxes (3)" in " ".join(capsys.readouterr().err.split())
    rows = TokenStore(tmp_path / "store").rows
    assert [row["box_labels"] for row in rows] == [None, ["hat"], None, None]
    assert rows[1]["box_labels"] == ["hat"] and rows[1]["box_ids"] == [[34, 67, 302, 269]]  # x1 y1 x2 y2 of 336
    assert rows[1]["mask_labels"] == ["hat"] and rows[1]["mask_ids"][0][:4] == [205, 102, 818, 921]  # y1 x1 y2 x2
