"""Bits are counted as they would be stored, and quality is that of the decoded pictures."""

import math
from typing import Any

import pytest
import torch

import vistok
from vistok.metrics.rate_distortion import rate_point, slots_to_choose
from vistok.metrics.reconstruction import psnr
from vistok.metrics.token_bits import token_bits


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny).eval()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def squares() -> torch.Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_a_grid_of_ids_costs_log2_of_the_codebook_each(squares: torch.Tensor) -> None:
    model = tiny("vq_nano")
    point = rate_point("mine", model, squares, batch=2)
    with torch.inference_mode():
        tokens = model.encode(squares)
        decoded = model.decode(tokens)
    ids = math.prod(tokens.spec.grid)
    assert point.tokens == ids and point.budget is None and slots_to_choose(model) is None
    assert point.bits_per_pixel == pytest.approx(ids * math.log2(model.spec.codebook_sizes[0]) / 256)
    each = [float(psnr(decoded[[at]], squares[[at]])) for at in range(3)]
    assert point.psnr == pytest.approx(sum(each) / 3, abs=1e-3)


def test_an_adaptive_tokenizer_spends_its_budget_and_pays_for_the_mask(squares: torch.Tensor) -> None:
    model = tiny("karl_nano")
    slots = slots_to_choose(model)
    assert slots is not None and slots > 2
    point = rate_point("mine", model, squares, 2)
    with torch.inference_mode():
        tokens = model.encode(squares, budget=2, halting=False)
    assert point.tokens == 2 == point.budget
    assert point.bits_per_pixel == pytest.approx(float(token_bits(tokens, slots).mean()) / 256)
    assert point.bits_per_pixel > 2 * 16 * tokens.spec.dim / 256


def test_what_cannot_be_encoded_is_refused_by_the_tokenizer() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        rate_point("mine", tiny("vq_nano"), torch.zeros(0, 3, 16, 16))
