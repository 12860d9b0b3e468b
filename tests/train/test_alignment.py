import pytest
import torch

from vistok.train.alignment import AlignmentLoss, adaptive_weight


def loss(**margins: float) -> AlignmentLoss:
    built = AlignmentLoss(4, 4, **margins)
    with torch.no_grad():
        built.project.weight.copy_(torch.eye(4))
    return built


def test_latents_laid_out_as_the_features_cost_nothing(generator: torch.Generator) -> None:
    features = torch.randn(2, 4, 2, 3, generator=generator)
    latents = 3 * features.flatten(2).transpose(1, 2)
    found = loss(cosine_margin=0.0, relation_margin=0.0)(latents, features, (2, 3))
    assert found.cosine < 1e-6 and found.relations < 1e-6


def test_both_parts_are_their_formulas_with_their_margins() -> None:
    latents = torch.tensor([[[1.0, 0, 0, 0], [0, 1, 0, 0]]])  # at right angles
    features = torch.tensor([[1.0, 0, 0, 0], [0.6, 0.8, 0, 0]]).T[None, :, None]  # cosine .6 between them
    plain = loss(cosine_margin=0.0, relation_margin=0.0)(latents, features, (1, 2))
    torch.testing.assert_close(plain.cosine, torch.tensor((0 + 0.2) / 2))
    torch.testing.assert_close(plain.relations, torch.tensor(2 * 0.6 / 4))
    wide = loss(cosine_margin=0.1, relation_margin=0.25)(latents, features, (1, 2))
    torch.testing.assert_close(wide.cosine, torch.tensor((0 + 0.1) / 2))
    torch.testing.assert_close(wide.relations, torch.tensor(2 * 0.35 / 4))


def test_turning_the_latents_as_a_whole_changes_directions_only(generator: torch.Generator) -> None:
    features = torch.randn(1, 4, 2, 2, generator=generator)
    latents = features.flatten(2).transpose(1, 2) @ torch.linalg.qr(torch.randn(4, 4, generator=generator)).Q
    found = loss(cosine_margin=0.0, relation_margin=0.0)(latents, features, (2, 2))
    assert found.relations < 1e-6 and found.cosine > 0.1


def test_the_weight_balances_gradients_at_the_last_layer() -> None:
    layer = torch.ones(2, requires_grad=True)
    found = adaptive_weight((3 * layer).sum(), (0.5 * layer).sum(), layer)
    torch.testing.assert_close(found, torch.tensor(0.6), rtol=1e-3, atol=0)
    assert not found.requires_grad
    huge = adaptive_weight((1e9 * layer).sum(), (0 * layer).sum(), layer)
    assert float(huge) == pytest.approx(1e7)


def test_grids_and_widths_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"latents \[B, 6, C\] and features \[B, 4, h, w\]"):
        loss()(torch.zeros(1, 5, 4), torch.zeros(1, 4, 2, 3), (2, 3))
