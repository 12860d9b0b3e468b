"""Counts, structure scores and calibration, on a model whose every answer is known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.metrics.complexity import calibrate, calibration_report, kc, kc_curve, structure_score
from vistok.tokens import TokenSpec, TokenTensor


class Known:
    """An image is one grey level g; it keeps round(10 g / eps) of 100 slots and reaches the error g / tokens."""

    budget = 100
    epsilons = (0.01, 0.1, 1.0)

    def __init__(self) -> None:
        self.bounds: dict[float, float] = {}

    def encode(self, images: Tensor, *, eps: Any = 0.0, budget: int | None = None, halting: bool = True) -> TokenTensor:
        grey = images.mean((1, 2, 3))
        lengths = torch.full((len(images),), budget or self.budget)
        if halting:
            lengths = (10 * grey / torch.as_tensor(eps)).round().long().clamp(1, self.budget)
        return TokenTensor(spec=TokenSpec("known"), embeds=grey[:, None, None].expand(-1, 100, 1), lengths=lengths)

    def decode(self, tokens: TokenTensor) -> Tensor:
        assert tokens.embeds is not None
        grey = tokens.embeds[:, 0, 0]
        return (grey + grey / tokens.valid_lengths)[:, None, None, None].expand(-1, 3, 2, 2)

    def set_calibration(self, bounds: dict[float, float]) -> None:
        self.bounds = bounds


GREYS = torch.tensor([0.2, 0.4, 1.0])
IMAGES = GREYS[:, None, None, None].expand(-1, 3, 2, 2)


def test_kc_is_the_number_of_tokens_kept_also_at_one_eps_for_each_image() -> None:
    assert kc(Known(), IMAGES, 0.1).tolist() == [20, 40, 100]
    assert kc(Known(), IMAGES, torch.tensor([0.1, 0.2, 0.5])).tolist() == [20, 20, 20]
    assert kc_curve(Known(), IMAGES, [0.1, 1.0]).tolist() == [[20, 40, 100], [2, 4, 10]]


def test_the_structure_score_is_what_more_tokens_gain_with_halting_off() -> None:
    torch.testing.assert_close(structure_score(Known(), IMAGES, 10, 100), GREYS / 10 - GREYS / 100)


def test_the_calibration_report_counts_who_misses_and_by_how_much() -> None:
    rows = calibration_report(Known(), IMAGES, [0.1, 0.01, 0.001])
    assert [row.over for row in rows] == pytest.approx([0, 0, 1])
    assert rows[2].excess == pytest.approx(float((GREYS / 100 - 0.001).mean()))
    assert rows[0].tokens == pytest.approx(160 / 3) and rows[0].error == pytest.approx(0.01)
    assert rows[0].excess == 0


def test_calibration_is_the_error_that_holds_for_the_share_asked_for() -> None:
    model = Known()
    bounds = calibrate(model, IMAGES, share=2 / 3)
    assert bounds == model.bounds and list(bounds) == [0.01, 0.1, 1.0]
    assert bounds[0.01] == pytest.approx(0.004, rel=1e-4)
    assert calibrate(model, IMAGES, share=1.0)[0.01] == pytest.approx(0.01, rel=1e-4)
    with pytest.raises(ValueError, match=r"share in \(0, 1\], got 3 and 0"):
        calibrate(model, IMAGES, share=0)
    with pytest.raises(ValueError, match="expected images"):
        calibrate(model, IMAGES[:0])
