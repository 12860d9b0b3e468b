import pytest
import torch

from vistok.train.masked_features import FeatureHead, draw_mask, feature_loss, on_grid


def test_a_share_of_the_images_has_the_ratio_hidden_and_the_others_nothing() -> None:
    torch.manual_seed(0)
    mask = draw_mask(400, 10, 0.4, 0.5)
    counts = mask.sum(1)
    assert set(counts.tolist()) == {0, 4}
    assert 150 < int((counts == 4).sum()) < 250
    assert (mask[counts == 4].float().mean(0) - 0.4).abs().max() < 0.15
    assert not draw_mask(4, 10, 0.4, 0.0).any() and draw_mask(4, 10, 1.0, 1.0).all()
    with pytest.raises(ValueError, match=r"in \[0, 1\], got 1.5 and 1.0"):
        draw_mask(4, 10, 1.5, 1.0)


def test_features_keep_their_places_on_another_grid(generator: torch.Generator) -> None:
    features = torch.randn(2, 5, 3, 4, generator=generator)
    same = on_grid(features, (3, 4))
    assert torch.equal(same[1, 5], features[1, :, 1, 1])
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)  # columns 0..3
    halved = on_grid(ramp, (2, 2))
    assert halved.shape == (1, 4, 1)
    torch.testing.assert_close(halved.flatten(), torch.tensor([0.5, 2.5, 0.5, 2.5]))


def test_the_loss_is_a_cosine_with_normed_features_at_hidden_places(generator: torch.Generator) -> None:
    target = 5 + 3 * torch.randn(1, 4, 8, generator=generator)
    right = (target - target.mean(-1, keepdim=True)) * 7
    masked = torch.tensor([[True, False, True, False]])
    assert feature_loss(right, target, masked) < 1e-4
    assert feature_loss(-right, target, masked) == pytest.approx(2, abs=1e-4)
    half = torch.cat([right[:, :1], -right[:, 1:]], 1)
    assert feature_loss(half, target, masked) == pytest.approx(1, abs=1e-4)
    assert feature_loss(half, target, masked, visible_weight=0.5) == pytest.approx((2 + 2 * 0.5 * 2) / 3, abs=1e-4)
    assert feature_loss(half, target, torch.zeros_like(masked)) == 0


def test_a_head_maps_tokens_to_the_teachers_width() -> None:
    assert FeatureHead(8, 20)(torch.zeros(2, 3, 8)).shape == (2, 3, 20)
