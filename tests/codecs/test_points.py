"""Points in the styles of boxes."""

from typing import Any

import torch
from torch import Tensor

import vistok


def example(codec: Any, generator: torch.Generator) -> Tensor:
    return torch.rand(5, 2, generator=generator)


def labelled(codec: Any) -> bool:
    return bool(codec.style.label)


def test_published_orders():
    point = torch.tensor([[0.25, 0.5]])
    texts = {}
    for name in ("pixel336_points", "loc1024_points", "loc1000_points"):
        codec: Any = vistok.codec(name)
        texts[name] = codec.to_text(codec.encode(point))[0]
    assert texts == {
        "pixel336_points": "(<PIXEL_84>,<PIXEL_168>)",
        "loc1024_points": "<loc0512><loc0256>",
        "loc1000_points": "<loc_250><loc_500>",
    }
