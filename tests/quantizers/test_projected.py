"""A quantizer between two linear maps."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.quantizers.projected import Projected


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(dim: int = 6) -> Projected:
    torch.manual_seed(0)
    return Projected(dim, quantizer={"method": "fsq", "levels": [4, 5, 3]})


def test_ids_and_embeds_are_those_of_the_maps_around_the_quantizer() -> None:
    projected, z = build().eval(), randn(4, 7, 6)
    out, inner = projected(z), projected.quantizer(projected.project_in(z))
    assert torch.equal(out.indices, inner.indices)
    torch.testing.assert_close(out.embeds, projected.project_out(inner.embeds))
    assert torch.equal(projected.lookup(out.indices), out.embeds)


def test_no_token_is_zero_in_spite_of_the_bias() -> None:
    projected = build().eval()
    found = projected.lookup(torch.tensor([3, -1]))
    assert bool((found[0] != 0).any()) and bool((found[1] == 0).all())


def test_gradients_reach_the_vectors_and_both_maps() -> None:
    projected, z = build().train(), randn(20, 6).requires_grad_()
    projected(z).embeds.square().sum().backward()
    for tensor in (z, *projected.parameters()):
        assert tensor.grad is not None and bool((tensor.grad != 0).any())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="projected: expected dim >= 1 and quantizer={'method'"):
        Projected(4, quantizer={"dim": 3})
    with pytest.raises(ValueError, match=r"projected: expected float vectors \[..., 6\]"):
        build()(randn(3, 5))


@pytest.mark.parametrize(
    "inner",
    [
        {"method": "residual_fsq", "levels": [4, 5, 3], "depth": 1},
        {"method": "residual", "levels": 1, "quantizer": {"method": "fsq", "levels": [4, 5, 3]}},
    ],
)
def test_a_single_residual_level_keeps_its_axis_of_ids(inner: dict[str, Any]) -> None:
    torch.manual_seed(0)
    projected = Projected(6, quantizer=inner).eval()
    out = projected(randn(4, 7, 6), torch.arange(7).expand(4, 7) < 5)
    assert out.indices.shape == (4, 7, 1)
    assert torch.equal(projected.lookup(out.indices), out.embeds) and bool((out.embeds[:, 5:] == 0).all())
