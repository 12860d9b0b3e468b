"""Cosmos CI: vectors as the encoder gives them, the sizes that were published, scripts by trust only."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vistok

TINY: dict[str, Any] = vistok.info("tokenizer", "cosmos_ci16").tiny


class _Half(nn.Module):
    """What encoder.jit and decoder.jit are: the network and its 1x1 convolution behind or before it."""

    def __init__(self, first: nn.Module, second: nn.Module, names: tuple[str, str]) -> None:
        super().__init__()
        self.names = names
        setattr(self, names[0], first)
        setattr(self, names[1], second)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = getattr(self, self.names[1])(getattr(self, self.names[0])(x))
        return out


def test_tokens_are_what_the_encoder_gives_and_decode_takes() -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("cosmos_ci16", **TINY)
    images = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(0))
    tokens = model.encode(images).check()
    with torch.no_grad():
        z = model.quant_conv(model.encoder(images * 2 - 1))
        back = model.decoder(model.post_quant_conv(z)) / 2 + 0.5
    assert tokens.indices is None and tokens.spec.grid == (2, 3) and tokens.spec.dim == 16
    torch.testing.assert_close(tokens.embeds, z.flatten(2).mT)
    torch.testing.assert_close(model.decode(tokens), back.clamp(0, 1))


@pytest.mark.parametrize("size", [(60, 68), (64, 64), (257, 129)])
def test_an_image_comes_back_in_its_size(size: tuple[int, int]) -> None:
    model: Any = vistok.tokenizer("cosmos_ci16", **TINY)
    images = torch.rand(1, 3, *size)
    assert model.decode(model.encode(images)).shape == images.shape


@pytest.mark.parametrize(("name", "patch"), [("cosmos_ci8", 8), ("cosmos_ci16", 16)])
def test_the_published_models_have_their_grid(name: str, patch: int) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
        z = model.quant_conv(model.encoder(torch.zeros(1, 3, 64, 96)))
    assert z.shape == (1, 16, 64 // patch, 96 // patch)


def test_scripts_are_read_by_trust_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("cosmos_ci16", **TINY).eval()  # type: ignore[attr-defined]
    images = torch.rand(1, 3, 8, 8)
    latents = torch.rand(1, 16, 2, 2)
    halves = {
        "encoder": (_Half(model.encoder, model.quant_conv, ("encoder", "quant_conv")), images),
        "decoder": (
            _Half(model.post_quant_conv, model.decoder, ("post_quant_conv", "decoder")),
            latents,
        ),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls TorchScript deprecated
        for stem, (half, example) in halves.items():
            torch.jit.trace(half, example).save(str(tmp_path / f"{stem}.jit"))
    with pytest.raises(ValueError, match="pass trust=True"):
        vistok.tokenizer("cosmos_ci16", checkpoint=tmp_path, **TINY)
    loaded: Any = vistok.tokenizer("cosmos_ci16", checkpoint=tmp_path, trust=True, **TINY)
    assert all(value.equal(model.state_dict()[name]) for name, value in loaded.state_dict().items())


def test_features_that_are_not_finite_are_no_tokens() -> None:
    model: Any = vistok.tokenizer("cosmos_ci16", **TINY).eval()
    with torch.no_grad():
        model.quant_conv.weight[0, 0] = float("inf")
    with pytest.raises(ValueError, match=r"expected finite features from torch.float32, got others in images \[0, 1\]"):
        model.encode(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))


def test_images_of_float32_are_encoded_in_bfloat16() -> None:
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    model: Any = vistok.tokenizer("cosmos_ci16", dtype=torch.bfloat16, **TINY)
    tokens = model.encode(images).check()
    assert model.decode(tokens).shape == images.shape
