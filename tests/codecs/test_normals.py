"""Surface normals as tokens."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.layers.map_losses import unit_normals


def example(codec: Any, generator: torch.Generator) -> Tensor:
    return unit_normals(torch.randn(2, 3, 30, 40, generator=generator))


def tiny() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec: Any = vistok.codec("normals", **vistok.info("codec", "normals").tiny)
    return codec.eval()


def test_what_is_decoded_has_length_one():
    codec = tiny()
    decoded = codec.decode(codec.encode(example(codec, torch.Generator().manual_seed(0))))
    assert decoded.shape == (2, 3, 24, 24)
    torch.testing.assert_close(decoded.norm(dim=1), torch.ones(2, 24, 24))


def test_the_published_size_has_256_codes_between_its_markers():
    with torch.device("meta"):
        codec: Any = vistok.codec("normals")
    assert codec.num_tokens == 100 and codec.strings[:3] == ("<NORMAL_START>", "<NORMAL_END>", "<NORMAL_0>")
    assert len(codec.strings) == 258


def test_the_loss_is_that_of_directions():
    codec = tiny()
    maps = codec.inputs(example(codec, torch.Generator().manual_seed(0)))
    out = codec.network(maps)
    cosine = torch.nn.functional.cosine_similarity(out.maps, maps, dim=1)
    expected = (1 - cosine).mean() + 0.1 * (out.maps - maps).square().mean()
    torch.testing.assert_close(out.reconstruction, expected)


@pytest.mark.parametrize("scale", [2.0, 0.0])
def test_vectors_of_another_length_are_refused(scale):
    with pytest.raises(ValueError, match="length 1"):
        tiny().encode(torch.ones(1, 3, 8, 8) * scale)
