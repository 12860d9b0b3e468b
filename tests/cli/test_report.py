"""`vistok report` from folders and files to one page."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.cli.main import main

HOSTILE = "<img src=x onerror=alert(1)>"


def made(name: str, folder: Path, **settings: Any) -> str:
    """A tiny tokenizer in a folder."""
    torch.manual_seed(0)
    tiny = {**vistok.info("tokenizer", name).tiny, **settings}
    model: Any = vistok.tokenizer(name, **tiny)  # type: ignore[attr-defined]
    model.save_pretrained(folder / name)
    return str(folder / name)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two pictures, of which one fails and one is named and captioned to do harm."""
    monkeypatch.chdir(tmp_path)
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.fromarray(data.astronaut()[:40, :56]).save(photos / f"{HOSTILE}.png")
    (photos / f"{HOSTILE}.txt").write_text(f"</script>{HOSTILE}")
    Image.fromarray(data.coffee()[:37, :30]).save(photos / "coffee.png")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    weights = made("vq_nano", tmp_path)
    assert main(["encode", "photos", "store", "--checkpoint", weights]) == 0
    return tmp_path / "store"


def page(tmp_path: Path, *words: str) -> str:
    assert main(["report", *words, "-o", "report.html"]) == 0
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_store_with_originals_and_its_tokenizer(store: Path, tmp_path: Path, capsys: Any) -> None:
    words = ("store", "--images", "photos", "--checkpoint", "vq_nano")
    text = page(tmp_path, *words)
    assert text.count("data-slider") == 2 + text.count("[data-slider]")
    assert len(re.findall(r"px, [\d,]+ tokens, PSNR [\d.]+ dB, SSIM [\d.]+", text)) == 2
    assert HOSTILE not in text and "alert(1)" in text and "broken.jpg" in text and "perplexity" in text
    assert "Originals are not shown" not in text and "report.html: 1 sections" in capsys.readouterr().out
    before = (tmp_path / "report.html").read_bytes()
    assert page(tmp_path, *words).encode() == before


def test_what_cannot_be_shown_is_said(store: Path, tmp_path: Path, capsys: Any) -> None:
    text = page(tmp_path, "store")
    assert "Reconstructions are not shown: store: expected the tokenizer that made this store" in text
    assert "say where they are with --images" in text and "data-slider>" not in text
    (tmp_path / "photos" / "coffee.png").write_bytes((tmp_path / "photos" / f"{HOSTILE}.png").read_bytes())
    (tmp_path / "photos" / f"{HOSTILE}.png").unlink()
    text = page(tmp_path, "store", "--images", "photos")
    assert "coffee.png is not the picture that was encoded" in text and "1 originals are not in photos" in text
    assert main(["report", "store", "--tokenizer", "vq_nano"]) == 1
    assert "pass the checkpoint that it was encoded with" in capsys.readouterr().err


def test_pictures_are_capped_by_number(store: Path, tmp_path: Path) -> None:
    text = page(tmp_path, "store", "--images", "photos", "--checkpoint", "vq_nano", "--samples", "1")
    assert "1 of 2 samples are shown." in text and text.count("Reconstruction of") == 1


def test_adaptive_and_continuous_tokens_are_strips_and_a_histogram(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(data.astronaut()[100 * number :, :300]).resize((20, 20)).save(f"photos/{number}.png")
    for name in ("karl_nano", "kl_nano"):
        resized = {"preprocess": {"resize": 16, "crop": 16}} if name == "karl_nano" else {}
        weights = made(name, tmp_path, **resized)
        assert main(["encode", "photos", f"store-{name}", "--tokenizer", name, "--checkpoint", weights]) == 0
    text = page(tmp_path, "store-karl_nano", "--checkpoint", "karl_nano", "--images", "photos")
    assert len(re.findall(r"\d+ of \d+ slots hold a token", text)) == 6 and text.count("data-slider>") == 3
    text = page(tmp_path, "store-kl_nano", "--checkpoint", "kl_nano")
    assert text.count('class="map"') == 3 and "perplexity" not in text


def test_several_sources_are_sections_of_one_page(store: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    (tmp_path / "eval.json").write_text(json.dumps({"tokenizer": HOSTILE, "rows": [{HOSTILE: 1}]}))
    text = page(tmp_path, "store", "run", "eval.json", "--title", HOSTILE)
    assert re.findall(r'<h2 id="s\d-title">(.*?)</h2>', text) == ["store", "run", "eval"] and HOSTILE not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gone"], "no such file or folder: gone; expected a token store, a training run or an evaluation"),
        (["."], "expected a token store (with dataset.json), a training run (with metrics.jsonl) or an evaluation"),
        (["notes.txt"], "notes.txt: expected a token store"),
        (["eval.json", "--samples", "-1"], "expected --samples >= 0"),
        (["eval.json", "--max-mb", "0"], "--max-mb >= 1"),
        (["eval.json", "-o", "./eval.json"], "expected --out to be another file than the sources"),
    ],
)
def test_anything_else_is_an_error_that_says_what_was_expected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "eval.json").write_text('{"a": 1}')
    assert main(["report", *words]) == 1
    assert message in " ".join(capsys.readouterr().err.split()) and not (tmp_path / "report.html").exists()
    assert (tmp_path / "eval.json").read_text() == '{"a": 1}'
