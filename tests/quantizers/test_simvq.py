"""SimVQ: the linear map is all that trains, and folds into a plain table."""

import pytest
import torch
from torch import Tensor

from vistok.quantizers.simvq import SimVQ
from vistok.quantizers.vq import VQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(dim: int, codebook_size: int, **settings: object) -> SimVQ:
    torch.manual_seed(0)
    return SimVQ(dim, codebook_size, **settings)  # type: ignore[arg-type]


def test_codes_ids_and_loss_by_hand() -> None:
    quantizer = build(2, 2, commitment_weight=0.5).eval()
    quantizer.library.frozen_codebook.copy_(torch.eye(2))
    with torch.no_grad():
        quantizer.library.code_transform.weight.copy_(torch.tensor([[0.0, 3.0], [2.0, 0.0]]))
    assert quantizer.codebook.tolist() == [[0.0, 2.0], [3.0, 0.0]]
    out = quantizer(torch.tensor([[0.0, 1.0], [5.0, 1.0]]))
    assert out.indices.tolist() == [0, 1] and out.embeds.tolist() == [[0.0, 2.0], [3.0, 0.0]]
    assert out.loss.item() == pytest.approx(1.5 * (1 + 4 + 1) / 4)


def test_one_step_moves_every_code_and_only_the_map_trains() -> None:
    quantizer = build(4, 50).train()
    assert [name for name, _ in quantizer.named_parameters()] == ["library.code_transform.weight"]
    before = quantizer.codebook.detach()
    optimizer = torch.optim.SGD(quantizer.parameters(), lr=0.1)
    quantizer(randn(3, 4)).loss.backward()  # at most 3 codes are won
    optimizer.step()
    assert bool((quantizer.codebook != before).any(1).all())


def test_gradients_are_those_of_the_formula() -> None:
    quantizer, z = build(4, 30).train(), randn(20, 4, seed=1).requires_grad_()
    weight, frozen = quantizer.library.code_transform.weight, quantizer.library.frozen_codebook
    out = quantizer(z)
    codes = frozen[out.indices] @ weight.T
    expected = (codes - z.detach()).square().mean() + 0.25 * (z - codes.detach()).square().mean()
    torch.testing.assert_close(out.loss, expected)
    found, wanted = (torch.autograd.grad(loss, (z, weight)) for loss in (out.loss, expected))
    torch.testing.assert_close(found, wanted)
    upstream = randn(20, 4, seed=2)
    (of_z,) = torch.autograd.grad(quantizer(z).embeds, z, upstream)
    assert torch.equal(of_z, upstream)


def test_the_rotation_acts_in_training_only() -> None:
    quantizer, z, upstream = build(4, 30, gradient="rotation"), randn(20, 4, seed=1).requires_grad_(), randn(20, 4)
    assert not torch.equal(torch.autograd.grad(quantizer.train()(z).embeds, z, upstream)[0], upstream)
    assert torch.equal(torch.autograd.grad(quantizer.eval()(z).embeds, z, upstream)[0], upstream)


def test_the_folded_table_is_a_plain_vq() -> None:
    quantizer, z = build(4, 300).eval(), randn(100, 4, seed=1)
    plain = VQ(4, 300)
    plain.set_codebook(quantizer.codebook.detach())
    out, expected = quantizer(z), plain.eval()(z)
    assert torch.equal(out.indices, expected.indices) and torch.equal(out.embeds, expected.embeds)


def test_the_frozen_table_has_the_length_that_the_paper_gives_it() -> None:
    assert build(64, 4000).library.frozen_codebook.square().sum(1).mean().item() == pytest.approx(1.0, abs=0.02)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="simvq: expected gradient in .* got 'gumbel', 32 and 65536"):
        SimVQ(gradient="gumbel")
