"""The weights that ship: small enough, and as good on photographs they never saw as their model cards say."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.cli._pictures import squares as adaptive_squares
from vistok.cli.eval import sample_crops
from vistok.metrics.adaptive import blurred, error_ratio, falling, promise, simpler_gets_fewer
from vistok.metrics.image_codecs import jpeg_at
from vistok.metrics.reconstruction import psnr
from vistok.weights import weight_file

NAMES = [
    name
    for name in vistok.list_tokenizers(pretrained=True)
    if str(vistok.info("tokenizer", name).weights).startswith("embedded:")
]
ENOUGH_DB = {"vq_nano": 26.5, "kl_nano": 31.0}


@pytest.fixture(scope="module")
def crops() -> Tensor:
    """astronaut, chelsea, coffee, rocket: [4, 3, 256, 256]."""
    return torch.stack([crop for _, crop in sample_crops(256)])


@pytest.fixture(scope="module", params=ENOUGH_DB)
def round_trip(request: pytest.FixtureRequest, crops: Tensor) -> tuple[str, Tensor]:
    tokenizer: Any = vistok.tokenizer(request.param, pretrained=True)
    with torch.inference_mode():
        return request.param, tokenizer.decode(tokenizer.encode(crops))


def mean_psnr(pictures: Tensor, crops: Tensor) -> float:
    return sum(float(psnr(a[None], b[None])) for a, b in zip(pictures, crops, strict=True)) / len(crops)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_at_most_six_megabytes_and_have_a_card_with_licence_and_numbers(name: str) -> None:
    file = weight_file(f"embedded:{name}")
    assert file.stat().st_size <= 6e6
    card = Path(file.with_name("README.md")).read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(part in card for part in ("## Data and licences", "## Recipe", "| mean |"))


def test_photographs_come_back_close_to_themselves(round_trip: tuple[str, Tensor], crops: Tensor) -> None:
    name, pictures = round_trip
    assert mean_psnr(pictures, crops) >= ENOUGH_DB[name]


def test_discrete_tokens_are_within_a_fifth_of_a_db_of_jpeg_at_equal_bytes(crops: Tensor) -> None:
    tokenizer: Any = vistok.tokenizer("vq_nano", pretrained=True)
    with torch.inference_mode():
        pictures = tokenizer.decode(tokenizer.encode(crops))
    bytes_of_ids = 32 * 32 * 2
    jpeg = sum(jpeg_at(crop, bytes_of_ids).psnr for crop in crops) / len(crops)
    assert mean_psnr(pictures, crops) >= jpeg - 0.2


def test_colours_do_not_shift(round_trip: tuple[str, Tensor], crops: Tensor) -> None:
    _, pictures = round_trip
    assert (pictures - crops).mean((2, 3)).abs().max() < 3 / 255


def test_no_grid_of_patches_shows(round_trip: tuple[str, Tensor], crops: Tensor) -> None:
    """Steps between columns are no larger at the patch borders than elsewhere, beyond those of the photograph."""
    _, pictures = round_trip
    for axis in (2, 3):
        steps = (pictures.diff(dim=axis) - crops.diff(dim=axis)).square().movedim(axis, 0).flatten(1).mean(1)
        at_border = torch.arange(1, 256) % 8 == 0
        assert steps[at_border].mean() < 1.25 * steps[~at_border].mean()


@pytest.fixture(scope="module")
def squares() -> Tensor:
    """48 squares of 96 px out of scikit-image's photographs."""
    model: Any = vistok.tokenizer("karl_nano")
    return adaptive_squares(model, None, 48)[0]


def test_adaptive_tokens_are_fewer_for_larger_errors_and_for_blurred_pictures(squares: Tensor) -> None:
    model: Any = vistok.tokenizer("karl_nano", pretrained=True).eval()  # type: ignore[attr-defined]
    fall = falling(model, squares, (0.03, 0.0483, 0.083, 0.14))
    assert fall.strictly and fall.share >= 0.9
    assert simpler_gets_fewer(model, blurred(squares), squares, 0.0483)[0] >= 0.8
    assert error_ratio(model, squares) >= 1.7


def test_verified_adaptive_tokens_meet_their_error_wherever_all_slots_do(squares: Tensor) -> None:
    model: Any = vistok.tokenizer("karl_nano", pretrained=True).eval()  # type: ignore[attr-defined]
    found = promise(model, squares, 0.064)
    assert found.over == 0 and found.unsatisfiable < len(squares) / 4
