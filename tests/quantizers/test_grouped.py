"""Grouped quantization: each group is its quantizer on its own channels."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.quantizers.grouped import Grouped

RESIDUAL: dict[str, Any] = {
    "method": "residual",
    "levels": 2,
    "quantizer": {"method": "vq", "dim": 3, "codebook_size": 8},
}


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def trained(groups: int = 3, quantizer: dict[str, Any] = RESIDUAL) -> Grouped:
    torch.manual_seed(0)
    grouped = Grouped(groups, quantizer=quantizer).train()
    for seed in range(5):
        grouped(randn(100, grouped.dim, seed=seed))
    return grouped.eval()


def test_each_group_quantizes_its_own_channels_and_ids_come_group_by_group() -> None:
    grouped, z = trained(), randn(20, 9, seed=99)
    assert grouped.dim == 9 and grouped.codebook_sizes == (8,) * 6
    out = grouped(z)
    parts = [quantizer(z[:, 3 * g : 3 * g + 3]) for g, quantizer in enumerate(grouped.quantizers)]
    torch.testing.assert_close(out.embeds, torch.cat([part.embeds for part in parts], dim=1), rtol=0, atol=0)
    assert torch.equal(out.indices, torch.cat([part.indices for part in parts], dim=1))
    torch.testing.assert_close(out.loss, torch.stack([part.loss for part in parts]).sum())
    assert torch.equal(grouped.lookup(out.indices), out.embeds)


def test_groups_of_one_codebook_have_one_id_each() -> None:
    grouped = Grouped(2, quantizer={"method": "fsq", "levels": [3, 5]}).eval()
    out = grouped(torch.tensor([[9.0, 9.0, -9.0, -9.0]]))
    assert out.indices.tolist() == [[14, 0]]
    assert out.embeds.tolist() == [[1.0, 1.0, -1.0, -1.0]]


def test_one_group_is_the_quantizer_itself_ids_without_an_axis() -> None:
    grouped = Grouped(1, quantizer={"method": "lfq", "dim": 4}).eval()
    out = grouped(randn(5, 4))
    assert out.indices.shape == (5,) and grouped.codebook_sizes == (16,)
    assert torch.equal(grouped.lookup(out.indices), out.embeds)


def test_a_group_whose_ids_are_missing_gives_zeros() -> None:
    grouped = trained()
    ids = grouped(randn(4, 9)).indices
    ids[:, 2:4] = -1
    assert bool((grouped.lookup(ids)[:, 3:6] == 0).all()) and bool((grouped.lookup(ids)[:, :3] != 0).any())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="grouped: expected groups >= 1 and quantizer={'method'"):
        Grouped(0, quantizer=RESIDUAL)
    with pytest.raises(ValueError, match="grouped: expected groups >= 1 and quantizer={'method'"):
        Grouped(2, quantizer={"dim": 3})
    with pytest.raises(ValueError, match=r"grouped: expected ids \[..., 6\], got \[5\]"):
        trained().lookup(torch.zeros(5, dtype=torch.int64))
