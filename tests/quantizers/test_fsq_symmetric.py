"""Symmetric FSQ: codes by hand, every id there and back, symmetry."""

import pytest
import torch

from vistok.quantizers.fsq_symmetric import SymmetricFSQ


def test_codes_and_ids_by_hand() -> None:
    z = torch.atanh(torch.tensor([[-0.9, 0.1], [0.4, -0.6]]))
    out = SymmetricFSQ([4, 3])(z)  # levels -1, -1/3, 1/3, 1 and -1, 0, 1
    torch.testing.assert_close(out.embeds, torch.tensor([[-1.0, 0.0], [1 / 3, -1.0]]))
    assert out.indices.tolist() == [0 + 4 * 1, 2 + 4 * 0]


@pytest.mark.parametrize("levels", [(2,), (2, 3, 4), (8, 5, 5), (7, 6, 5, 4)])
def test_every_id_round_trips(levels: tuple[int, ...]) -> None:
    quantizer = SymmetricFSQ(levels)
    ids = torch.arange(quantizer.codebook_sizes[0])
    codes = quantizer.lookup(ids)
    out = quantizer(torch.atanh(codes * 0.999))
    assert torch.equal(out.indices, ids) and torch.equal(out.embeds, codes)
    assert len(codes.unique(dim=0)) == len(ids)


def test_the_opposite_vector_has_the_opposite_code() -> None:
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0))
    quantizer = SymmetricFSQ([6, 5, 2])
    torch.testing.assert_close(quantizer(-z).embeds, -quantizer(z).embeds)


def test_the_gradient_is_that_of_tanh() -> None:
    z = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (found,) = torch.autograd.grad(SymmetricFSQ([6, 5, 2])(z).embeds.sum(), z)
    torch.testing.assert_close(found, 1 - torch.tanh(z.detach()).square())


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="expected levels >= 2"):
        SymmetricFSQ([1, 3])
