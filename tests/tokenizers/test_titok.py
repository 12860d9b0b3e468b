"""TiTok: the sizes of the published models, the legacy reshape, pixel order, the published key names."""

from typing import Any

import pytest
import torch

import vistok
from vistok.tokenizers.titok import TiTok

TINY: dict[str, Any] = {
    "encoder_width": 16, "encoder_layers": 1, "encoder_heads": 2, "decoder_width": 16, "decoder_layers": 1,
    "decoder_heads": 2, "latents": 6, "dim": 4, "codebook_size": 32, "image_size": (16, 24), "patch": 8,
}  # fmt: skip
BELOW = {"ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 2, "z_channels": 8, "n_embed": 8}
PUBLISHED = {
    "titok_l32": (692, 641.1),
    "titok_b64": (404, 204.8),
    "titok_s128": (308, 83.7),
    "titok_bl64_vq8k": (459, 390.0),
    "titok_bl128_vq8k": (459, 390.2),
    "titok_sl256_vq8k": (411, 330.3),
    "titok_ll32_vae_c16": (602, 606.9),
    "titok_bl64_vae_c16": (458, 389.4),
    "titok_bl128_vae_c16": (458, 389.6),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_models_have_their_published_sizes(name: str) -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer(name)
    tensors, millions = PUBLISHED[name]
    state = model.state_dict()
    assert len(state) == tensors
    assert sum(value.numel() for value in state.values()) / 1e6 == pytest.approx(millions, abs=0.051)


def test_a_legacy_encoder_reshapes_where_another_transposes() -> None:
    torch.manual_seed(0)
    legacy = TiTok(**TINY, pixel_decoder=BELOW).eval()
    other = TiTok(**TINY, legacy=False).eval()
    for part in ("encoder", "latent_tokens"):
        ours, theirs = getattr(legacy, part), getattr(other, part)
        theirs.load_state_dict(ours.state_dict()) if part == "encoder" else theirs.data.copy_(ours.data)
    images = torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        latents = legacy.encoder(images, legacy.latent_tokens)
        weight, bias = legacy.encoder.conv_out.weight[..., 0, 0], legacy.encoder.conv_out.bias
        torch.testing.assert_close(legacy.moments(images), latents.reshape(2, 16, 6).transpose(1, 2) @ weight.T + bias)
        torch.testing.assert_close(other.moments(images), latents @ weight.T + bias)


def test_a_patch_of_pixels_comes_as_row_column_channel() -> None:
    model = TiTok(**TINY, legacy=False).eval()
    decoder: Any = model.decoder
    with torch.no_grad():
        decoder.ffn[0].weight.zero_()
        decoder.ffn[0].bias.copy_(torch.arange(192.0))
        decoder.conv_out.weight.zero_()
        decoder.conv_out.bias.zero_()
        decoder.conv_out.weight[range(3), range(3), 1, 1] = 1.0
        images = model.predict(torch.zeros(1, 6, 4))
    assert images.shape == (1, 3, 16, 24)
    assert images[0, :, 1, 2].tolist() == images[0, :, 9, 18].tolist() == [30.0, 31.0, 32.0]


def test_checkpoints_with_the_authors_names_load_and_any_other_key_is_refused(tmp_path: Any) -> None:
    model = TiTok(**TINY, pixel_decoder=BELOW)
    theirs = {
        name.replace(".mid.block_1.", ".mid.0.")
        .replace(".mid.block_2.", ".mid.1.")
        .replace(".upsample.conv.", ".upsample_conv."): value
        for name, value in model.state_dict().items()
    }
    assert any(name.startswith("pixel_decoder.mid.0.") for name in theirs)
    path = tmp_path / "titok.pt"
    torch.save(theirs, path)
    loaded: Any = vistok.tokenizer("titok_s128", checkpoint=path, **TINY, pixel_decoder=BELOW)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    torch.save({**theirs, "surplus": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="unexpected surplus"):
        vistok.tokenizer("titok_s128", checkpoint=path, **TINY, pixel_decoder=BELOW)


def test_images_of_another_size_are_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match=r"16x24 pixels, got 24x16; use model.preprocess"):
        TiTok(**TINY, legacy=False).encode(torch.zeros(1, 3, 24, 16))
    with pytest.raises(ValueError, match="expected all 6 tokens"):
        model = TiTok(**TINY, legacy=False).eval()
        model.decode(model.encode(torch.zeros(1, 3, 16, 24)).truncate(3))
