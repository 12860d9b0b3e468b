"""VQ trained by gradient: its two losses, the legacy order of their weights, the cosine form, the entropy term."""

from typing import Any

import pytest
import torch
from torch import Tensor

from vistok.ops.code_spread import code_diversity, orthogonality
from vistok.quantizers.vq_learned import LearnedVQ


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def at(codes: Tensor, **settings: Any) -> LearnedVQ:
    quantizer = LearnedVQ(codes.shape[1], len(codes), **settings)
    quantizer.embedding.data.copy_(codes)
    return quantizer


@pytest.mark.parametrize("legacy", [False, True])
def test_beta_weighs_the_commitment_or_in_the_legacy_form_the_codebook(legacy: bool) -> None:
    quantizer = at(torch.tensor([[0.0], [10.0]]), commitment_weight=0.25, legacy=legacy).train()
    z = torch.tensor([[2.0], [1.0], [13.0], [10.0]]).requires_grad_()
    out = quantizer(z)
    assert out.indices.tolist() == [0, 0, 1, 1]
    assert out.loss.item() == pytest.approx(1.25 * (4 + 1 + 9) / 4)  # the value is the same: only gradients differ
    of_z, of_codes = torch.autograd.grad(out.loss, (z, quantizer.embedding))
    on_z, on_codes = (1.0, 0.25) if legacy else (0.25, 1.0)
    assert of_z.flatten().tolist() == pytest.approx([on_z * 2 * d / 4 for d in (2, 1, 3, 0)])
    assert of_codes.flatten().tolist() == pytest.approx([on_codes * 2 * d / 4 for d in (-3, -3)])


def test_embeds_give_the_codebook_no_gradient_and_pass_it_to_z_unchanged() -> None:
    quantizer, z, upstream = at(randn(9, 4)).train(), randn(5, 4, seed=1).requires_grad_(), randn(5, 4, seed=2)
    of_z, of_codes = torch.autograd.grad(quantizer(z).embeds, (z, quantizer.embedding), upstream, allow_unused=True)
    assert torch.equal(of_z, upstream) and of_codes is None


def test_codes_start_within_one_over_k_and_each_encodes_to_itself() -> None:
    quantizer = LearnedVQ(8, 2000).eval()
    assert quantizer.embedding.abs().max().item() <= 1 / 2000
    assert torch.equal(quantizer(quantizer.embedding.detach()).indices, torch.arange(2000))


def test_cosine_normalises_vectors_and_codes_at_each_use() -> None:
    quantizer = at(torch.tensor([[5.0, 0.0], [0.0, 0.1]]), metric="cosine").eval()
    z = torch.tensor([[0.01, 0.02], [300.0, 100.0]])
    out = quantizer(z)
    assert out.indices.tolist() == [1, 0] and out.embeds.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    units = z / z.norm(dim=1, keepdim=True)
    torch.testing.assert_close(out.stats["commitment_loss"], (units - out.embeds).square().mean().detach())
    assert quantizer.embedding.tolist()[0] == [5.0, 0.0]  # the stored rows keep their length


def test_an_unnormalised_search_gives_other_ids_than_cosine() -> None:
    codes, z = randn(200, 6) * (torch.rand(200, 1, generator=torch.Generator().manual_seed(3)) + 0.2), randn(300, 6)
    ids = at(codes, metric="cosine").eval()(z).indices
    assert torch.equal(ids, torch.nn.functional.cosine_similarity(z[:, None], codes, dim=-1).argmax(1))
    assert (at(codes).eval()(z).indices == ids).float().mean().item() < 0.9


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_the_entropy_term_is_that_of_all_squared_distances(metric: str) -> None:
    settings = {"entropy_weight": 0.3, "temperature": 0.5, "metric": metric}
    quantizer, z = at(randn(40, 5), **settings).train(), randn(60, 5, seed=1).requires_grad_()
    plain = at(quantizer.embedding.detach(), metric=metric).train()
    out, without = quantizer(z), plain(z)
    x, codes = z.double(), quantizer.embedding.double()
    if metric == "cosine":
        x, codes = (torch.nn.functional.normalize(tensor, dim=1) for tensor in (x, codes))
    log_p = (-(x[:, None] - codes).square().sum(-1) / 0.5).log_softmax(1)
    mean = log_p.exp().mean(0)
    entropy = -(log_p.exp() * log_p).sum(1).mean() + (mean * (mean + 1e-5).log()).sum()
    torch.testing.assert_close(out.loss - without.loss, 0.3 * entropy.float(), rtol=1e-4, atol=1e-5)
    found = torch.autograd.grad(out.loss, (z, quantizer.embedding))
    base = torch.autograd.grad(without.loss, (z, plain.embedding))
    expected = torch.autograd.grad(0.3 * entropy, (z, quantizer.embedding))
    for total, of_loss, of_entropy in zip(found, base, expected, strict=True):
        torch.testing.assert_close(total - of_loss, of_entropy, rtol=1e-4, atol=1e-5)


def test_an_optimizer_brings_the_codes_to_the_data() -> None:
    centres = 3 * randn(4, 3)
    quantizer = at(centres + 0.5).train()
    optimizer = torch.optim.Adam(quantizer.parameters(), lr=0.05)
    for seed in range(100):
        optimizer.zero_grad()
        quantizer(centres + 0.01 * randn(4, 3, seed=seed)).loss.backward()
        optimizer.step()
    torch.testing.assert_close(quantizer.codebook.detach(), centres, rtol=0, atol=0.1)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="vq_learned: expected metric in .* got 'l1' and 'straight_through'"):
        LearnedVQ(metric="l1")
    with pytest.raises(
        ValueError, match="vq_learned: expected dim and codebook_size >= 1, .* got 8, 0, 0.01 and 1e-05"
    ):
        LearnedVQ(8, 0)


def test_diversity_and_orthogonality_are_added_in_training_with_their_weights() -> None:
    codes, z = randn(11, 3), randn(40, 3, seed=1)
    plain = at(codes).train()(z)
    settings = {"diversity_weight": 0.3, "diversity_temperature": 5.0, "orthogonal_weight": 0.7}
    spread = at(codes, **settings).train()(z)
    assert float(spread.stats["diversity"]) == pytest.approx(float(code_diversity(z, codes, 5.0)))
    assert float(spread.stats["orthogonality"]) == pytest.approx(float(orthogonality(codes)))
    expected = plain.loss - 0.3 * spread.stats["diversity"] + 0.7 * spread.stats["orthogonality"]
    torch.testing.assert_close(spread.loss, expected)
    torch.testing.assert_close(at(codes, **settings).eval()(z).loss, plain.loss)
    cosine = at(codes, metric="cosine", **settings).train()(z)
    units, directions = (torch.nn.functional.normalize(each, dim=1) for each in (z, codes))
    torch.testing.assert_close(cosine.stats["diversity"], code_diversity(units, directions, 5.0, cosine=True))
