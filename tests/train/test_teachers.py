import pytest
import torch

from vistok.train.teachers import make_teacher


def test_the_tower_of_the_embedded_model_gives_features_of_the_layer(generator: torch.Generator) -> None:
    images = torch.rand(2, 3, 96, 96, generator=generator)
    early, last = (make_teacher({"method": "lvlm_tower", "layer": layer}) for layer in (2, -1))
    one, two = early(images), last(images)
    assert one.shape == two.shape == (2, 128, 12, 12) and not one.requires_grad
    assert not torch.allclose(one, two)
    torch.testing.assert_close(last(images[1:])[0], two[1], rtol=0, atol=1e-4)
    changed = images.clone()
    changed[:, :, 48:, 48:] = 0
    moved = (early(changed) - one).norm(dim=1)
    assert moved[:, 7:, 7:].mean() > 3 * moved[:, :5, :5].mean()
    assert early(torch.rand(1, 3, 50, 50)).shape == (1, 128, 12, 12)


def test_a_timm_model_gives_the_features_of_its_blocks(generator: torch.Generator) -> None:
    tiny = {"model": "vit_tiny_patch16_224", "pretrained": False, "img_size": 32, "depth": 2, "embed_dim": 24}
    teacher = make_teacher({"method": "timm_model", **tiny, "num_heads": 2})
    assert teacher(torch.rand(2, 3, 32, 32, generator=generator)).shape == (2, 24, 2, 2)


def test_teachers_and_layers_that_there_are_not_are_refused() -> None:
    with pytest.raises(ValueError, match="one of lvlm_tower, timm_model, got 'dino'"):
        make_teacher({"method": "dino"})
    with pytest.raises(ValueError, match=r"a layer of it, 1..6, got 7"):
        make_teacher({"method": "lvlm_tower", "layer": 7})
