"""`vistok encode --eps`: fewer tokens for larger errors, ragged lengths through the store and back to pictures."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.cli.main import main
from vistok.data.store import TokenStore


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(data.astronaut()[100 * number :, :300]).resize((40, 30 + number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A tiny model that halts about half of its slots, other ones for other images."""
    torch.manual_seed(0)
    tiny = {**vistok.info("tokenizer", "karl_nano").tiny, "preprocess": {"resize": 16, "crop": 16}}
    model: Any = vistok.tokenizer("karl_nano", **tiny).eval()  # type: ignore[attr-defined]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        logits = model.latents(torch.rand(4, 3, 16, 16), 8, torch.zeros(4, dtype=torch.int64)).halt_logits
        model.halting_mlp[2].bias.add_(1.0986 - logits.median())
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_lengths_slots_and_embeds_come_back_from_the_store(photos: Path, checkpoint: Path, tmp_path: Path) -> None:
    words = [
        "encode",
        str(photos),
        str(tmp_path / "store"),
        "--tokenizer",
        "karl_nano",
        "--checkpoint",
        str(checkpoint),
    ]
    assert main([*words, "--eps", "0.05", "--threads", "1"]) == 0
    model: Any = vistok.tokenizer("karl_nano", checkpoint=checkpoint).eval()  # type: ignore[attr-defined]
    store = TokenStore(tmp_path / "store")
    counts = set()
    for number in range(len(store)):
        stored = store[number]
        picture = model.preprocess(Image.open(photos / f"{number}.png"))[None]
        with torch.no_grad():
            own = model.encode(picture, eps=0.05).trim()
            assert torch.equal(stored.source, own.source)
            torch.testing.assert_close(stored.embeds.float(), own.embeds, rtol=1e-3, atol=1e-3)
            torch.testing.assert_close(model.decode(stored.to(torch.float32)), model.decode(own), rtol=0, atol=1e-2)
        counts.add(own.num_slots)
    assert len(counts) > 1
    assert main(["decode", str(tmp_path / "store"), str(tmp_path / "out"), "--checkpoint", str(checkpoint)]) == 0
    assert len(list((tmp_path / "out").rglob("*.png"))) == 3


def test_an_error_is_refused_where_the_length_is_fixed(photos: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["encode", str(photos), str(tmp_path / "store"), "--eps", "0.05"]) != 0
    assert "--eps: expected a tokenizer of adaptive length" in capsys.readouterr().err
