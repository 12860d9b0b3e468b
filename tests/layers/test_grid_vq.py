"""What tokenizers of one code per patch share: ranges of pixels, sizes, errors, the settings of other libraries."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vistok.layers.grid_vq import GridVq, is_foreign
from vistok.quantizers.fsq import FSQ


class Corners(GridVq):
    """Every 2x2 block of an image of black and white is one code of twelve ternary digits, which is exact."""

    def __init__(self, black: float = -1.0, preprocess: dict[str, Any] | None = None) -> None:
        quantizer = FSQ([3] * 12)
        super().__init__("corners", patch=2, dim=12, codebook_sizes=quantizer.codebook_sizes, preprocess=preprocess)
        self.black = black
        self.encoder = nn.PixelUnshuffle(2)
        self.quant_conv = self.post_quant_conv = nn.Identity()
        self.quantize = quantizer
        same = nn.Conv2d(12, 12, 1, bias=False)
        nn.init.dirac_(same.weight)
        self.decoder = nn.Sequential(same, nn.PixelShuffle(2))
        self.seen: list[Tensor] = []

    def features(self, pixels: Tensor) -> Tensor:
        """Keeps what the network is given."""
        self.seen.append(pixels)
        return super().features(pixels)


def black_and_white(*size: int) -> Tensor:
    return torch.rand(size, generator=torch.Generator().manual_seed(0)).round()


@pytest.mark.parametrize("black", [-1.0, 0.0])
def test_the_network_sees_pixels_between_black_and_1_and_images_come_back_in_0_to_1(black: float) -> None:
    model, images = Corners(black), black_and_white(2, 3, 5, 7)
    tokens = model.encode(images).check()
    assert model.seen[0].unique().tolist() == [black, 1.0] and model.seen[0].shape == (2, 3, 6, 8)
    assert (tokens.spec.grid, tokens.spec.image_size, tokens.num_slots) == ((3, 4), (5, 7), 12)
    assert tokens.coords is not None and tokens.coords[0, 5].tolist() == [1, 1]
    with torch.no_grad():
        torch.testing.assert_close(model.decode(tokens), images, rtol=0, atol=1e-6)
        torch.testing.assert_close(model.decode(tokens.replace(embeds=None)), images, rtol=0, atol=1e-6)


def test_training_sees_what_decoding_gives() -> None:
    model, images = Corners(), black_and_white(1, 3, 4, 4)
    out = model(images)
    torch.testing.assert_close(out.images, images, rtol=0, atol=1e-6)
    assert out.loss.shape == () and "perplexity" in out.stats


def test_a_budget_and_missing_tokens_are_refused() -> None:
    model, images = Corners(), black_and_white(1, 3, 4, 4)
    with pytest.raises(ValueError, match="expected no budget"):
        model.encode(images, budget=2)
    with pytest.raises(ValueError, match=r"expected all tokens of a grid \(2, 2\), got N=3"):
        model.decode(model.encode(images).truncate(3))


def test_settings_are_taken_from_our_own_config_only() -> None:
    assert Corners.rename_settings({"black": 0.0}) == {"black": 0.0}
    assert Corners.rename_settings({"architectures": ["CosmosTokenizer"], "black": 0.0}) == {}
    assert is_foreign({"_class_name": "VQModel"}) and is_foreign({"model_type": "janus"}) and not is_foreign({})


def test_features_that_are_not_finite_are_no_tokens() -> None:
    model, images = Corners(), black_and_white(2, 3, 4, 4)
    model.quant_conv = nn.Conv2d(12, 12, 1, bias=False)
    nn.init.dirac_(model.quant_conv.weight)
    with torch.no_grad():
        model.quant_conv.weight[3] = float("nan")
    for training in (False, True):
        with pytest.raises(ValueError, match=r"corners: expected finite features from torch.float32, got .*\[0, 1\]"):
            model.train(training).encode(images)


def test_images_of_float32_are_encoded_by_a_network_of_less_precision() -> None:
    model, images = Corners(), black_and_white(1, 3, 4, 4)
    model.encoder = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(12, 12, 1))
    tokens = model.to(torch.bfloat16).encode(images).check()
    assert model.features(images.to(torch.bfloat16)).dtype == torch.bfloat16 and tokens.num_slots == 4
    assert model.to(torch.float32).encode(images.to(torch.bfloat16)).num_slots == 4
