import io
import math

import pytest
import torch
from PIL import Image
from rich.console import Console

import vistok
from vistok.cli.demo import demo_table, run_demo
from vistok.data.images import open_image
from vistok.data.samples import SAMPLES, sample_path
from vistok.layers.preprocess import Preprocess
from vistok.metrics.reconstruction import psnr


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return vistok.tokenizer("vq_nano", **vistok.info("tokenizer", "vq_nano").tiny)


@pytest.fixture(
    scope="module", params=[("astronaut", "chelsea"), pytest.param(SAMPLES, marks=pytest.mark.slow)], ids=["two", "all"]
)
def shown(request, model, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vistok.cli.demo.SAMPLES", request.param)
        rows, sheet = run_demo(model, tmp_path_factory.mktemp("demo") / "out")
    assert tuple(row.image for row in rows) == request.param
    return rows, sheet


def test_every_photograph_is_encoded_at_full_size(model, shown):
    rows, _ = shown
    for row in rows:
        assert row.tokens == math.ceil(row.width / 4) * math.ceil(row.height / 4)
        assert row.bits == math.ceil(row.tokens * math.log2(64_000))


def test_the_psnr_is_that_of_the_decoded_photograph(model, shown):
    (chelsea,) = (row for row in shown[0] if row.image == "chelsea")
    image = Preprocess()(open_image(sample_path("chelsea")))[None]
    with torch.inference_mode():
        decoded = model.eval().decode(model.encode(image))
    assert chelsea.psnr == pytest.approx(float(psnr(decoded, image)), abs=1e-4)


def test_the_sheet_shows_originals_above_their_reconstructions(shown):
    rows, path = shown
    with Image.open(path) as sheet:
        assert sheet.width > sum(min(512, row.width) for row in rows) and sheet.height > 2 * 512
        with Image.open(sample_path("astronaut")) as astronaut:
            corner = astronaut.convert("RGB").crop((0, 0, 64, 64)).tobytes()
        assert any(sheet.crop((16, top, 80, top + 64)).tobytes() == corner for top in range(100))


def test_the_report_shows_every_photograph_beside_its_reconstruction_and_its_tokens(shown):
    rows, sheet = shown
    text = (sheet.parent / "report.html").read_text(encoding="utf-8")
    for row in rows:
        for words in (f"Original of {row.image}", f"Reconstruction of {row.image}", f"Token map of {row.image}"):
            assert words in text
        assert f"{row.tokens:,} tokens, PSNR {row.psnr:.2f} dB" in text


def test_the_table_fits_a_terminal_of_80_columns(shown):
    rows, _ = shown
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(demo_table("vq_nano", rows))
    text = console.export_text()
    for row in rows:
        assert f"{row.width} x {row.height}" in text and f"{row.bits:,}" in text and f"{row.psnr:.2f}" in text
