"""Florence-2's quadrilaterals."""

from typing import Any

import torch
from torch import Tensor

import vistok


def example(codec: Any, generator: torch.Generator) -> Tensor:
    return torch.rand(3, 4, 2, generator=generator)


def labelled(codec: Any) -> bool:
    return bool(codec.style.label)


def test_the_published_order_behind_the_text_that_was_read():
    codec: Any = vistok.codec("loc1000_quads")
    corners = torch.tensor([[[0.1, 0.2], [0.3, 0.2], [0.3, 0.4], [0.1, 0.4]]])
    text = codec.to_text(codec.encode(corners), ["EXIT"])[0]
    assert text == "EXIT<loc_100><loc_200><loc_300><loc_200><loc_300><loc_400><loc_100><loc_400>"
    torch.testing.assert_close(codec.decode(codec.encode(corners)), corners, rtol=0, atol=5.1e-4)
