"""IBQ against the authors' dense form under autograd, written out here."""

import pytest
import torch
from torch import Tensor

from vistok.quantizers.ibq import IBQ
from vistok.quantizers.vq import VQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def build(dim: int, codebook_size: int, **settings: float) -> IBQ:
    torch.manual_seed(0)
    return IBQ(dim, codebook_size, **settings)  # type: ignore[arg-type]


def dense(quantizer: IBQ, z: Tensor) -> tuple[Tensor, Tensor]:
    """embeds and loss of one training step by autograd over N x K tensors, in float64."""
    z, codebook = z.double(), quantizer.codebook.double()
    logits = z @ codebook.T
    p = logits.softmax(1)
    one_hot = torch.nn.functional.one_hot(logits.argmax(1), len(codebook)).to(p)
    embeds, codes = (one_hot - p.detach() + p) @ codebook, one_hot @ codebook
    loss = (embeds - z).square().mean() + (codes.detach() - z).square().mean()
    loss = loss + quantizer.beta * (codes - z.detach()).square().mean()
    log_p = (logits / quantizer.temperature).log_softmax(1)
    mean = log_p.exp().mean(0)
    sample, batch = -(log_p.exp() * log_p).sum(1).mean(), -(mean * (mean + quantizer.entropy_eps).log()).sum()
    entropy = quantizer.sample_entropy_weight * sample - quantizer.batch_entropy_weight * batch
    return embeds, loss + quantizer.entropy_weight * entropy


@pytest.mark.parametrize("entropy_weight", [0.0, 0.05])
@pytest.mark.parametrize("size", [5, 300, 1500])
def test_loss_and_gradients_are_those_of_the_dense_form(size: int, entropy_weight: float) -> None:
    quantizer = build(6, size, entropy_weight=entropy_weight, batch_entropy_weight=1.4, beta=0.4).train()
    z, upstream = randn(300, 6, seed=1).requires_grad_(), randn(300, 6, seed=2)
    out = quantizer(z)
    embeds, loss = dense(quantizer, z)
    torch.testing.assert_close(out.embeds, embeds.float())
    torch.testing.assert_close(out.loss, loss.float(), rtol=1e-5, atol=1e-5)
    inputs = (z, quantizer.codebook)
    found = torch.autograd.grad((out.embeds * upstream).sum() + out.loss, inputs)
    expected = torch.autograd.grad((embeds * upstream).sum() + loss, inputs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_it_takes_the_largest_dot_product_and_a_nearest_code_quantizer_gives_other_ids() -> None:
    quantizer, z = build(8, 200).eval(), randn(400, 8, seed=1)
    ids = quantizer(z).indices
    assert torch.equal(ids, (z @ quantizer.codebook.T).argmax(1))
    nearest = VQ(8, 200)
    nearest.set_codebook(quantizer.codebook.detach())
    assert 0.02 < float((nearest.eval()(z).indices == ids).float().mean()) < 0.9


def test_the_loss_of_one_code_by_hand() -> None:
    quantizer = build(2, 1, beta=0.5)
    torch.nn.init.constant_(quantizer.codebook, 3.0)
    out = quantizer.eval()(torch.tensor([[1.0, 0.0]]))
    assert float(out.stats["commitment_loss"]) == pytest.approx((4 + 9) / 2)
    assert out.loss.item() == pytest.approx((1 + 1 + 0.5) * 6.5)


def test_every_code_gets_a_gradient_in_every_step() -> None:
    quantizer = build(8, 512, entropy_weight=0.0).train()
    quantizer(randn(64, 8)).loss.backward()
    assert quantizer.codebook.grad is not None
    assert bool((quantizer.codebook.grad != 0).any(1).all())


def test_eval_passes_the_same_gradient_of_embeds_as_training() -> None:
    quantizer, z, upstream = build(4, 20), randn(30, 4, seed=1).requires_grad_(), randn(30, 4, seed=2)
    in_training = torch.autograd.grad(quantizer.train()(z).embeds, z, upstream)
    torch.testing.assert_close(torch.autograd.grad(quantizer.eval()(z).embeds, z, upstream), in_training)


def test_entropy_eps_hides_the_evenness_of_a_large_codebook_and_zero_does_not() -> None:
    z = randn(256, 4)
    with_eps, exact = (build(4, 4000, entropy_eps=eps, temperature=100.0).train()(z) for eps in (1e-3, 0.0))
    assert float(exact.stats["batch_entropy"]) == pytest.approx(8.294, abs=0.01)  # log 4000
    assert float(with_eps.stats["batch_entropy"]) < 7


def test_training_on_the_loss_uses_more_of_the_codebook() -> None:
    quantizer = build(4, 64, temperature=0.5, entropy_weight=0.5).train()
    z = 0.3 * randn(512, 4, seed=1) + 1
    before = float(quantizer(z).stats["perplexity"])
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for _ in range(60):
        optimizer.zero_grad()
        quantizer(z).loss.backward()
        optimizer.step()
    assert float(quantizer(z).stats["perplexity"]) > 1.5 * before


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="ibq: expected dim and codebook_size >= 1, got 0 and 4"):
        IBQ(0, 4)
    with pytest.raises(ValueError, match="ibq: expected temperature > 0 and entropy_eps >= 0, got 0.0 and 1e-05"):
        IBQ(4, 4, temperature=0.0)
