from typing import Any

import pytest
import torch

import vistok
from vistok.train.seed_start import start_by_width


def test_matrices_start_with_the_spread_of_their_width() -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("seed_nano")
    start_by_width(model)
    layer = model.Qformer.bert.encoder.layer[0]
    assert layer.intermediate.dense.weight.std().item() == pytest.approx(96**-0.5, rel=0.05)
    assert layer.output.dense.weight.std().item() == pytest.approx(384**-0.5, rel=0.05)
