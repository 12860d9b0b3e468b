import torch
from torch import Tensor, nn

from vistok.readouts.linear import Linear


def test_it_is_the_final_feature_and_its_length_is_one_if_asked_for(vit: nn.Module, images: Tensor) -> None:
    with torch.no_grad():
        expected = vit.forward_head(vit.forward_features(images), pre_logits=True)
    assert torch.equal(Linear(vit)(images).features, expected)
    normal = Linear(vit, normalize=True)(images).features
    torch.testing.assert_close(normal, expected / expected.norm(dim=1, keepdim=True))
    assert Linear(vit).tokens(images).embeds.shape == (3, 1, 32)
