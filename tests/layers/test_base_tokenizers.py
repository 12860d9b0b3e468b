"""What 1-D tokenizers stand on: odd residual blocks, attention where it belongs, pixels there and back."""

from typing import Any

import pytest
import torch

from vistok.layers.base_tokenizers import PixelBase, make_base
from vistok.layers.codebook import Codebook
from vistok.layers.ldm_vae import LdmVae
from vistok.layers.maskgit_vqgan import MaskGitVqgan, VqganBlock, soft_codes

SIZES: dict[str, Any] = {"ch": 32, "ch_mult": [1, 2, 1], "num_res_blocks": 1, "decoder_num_res_blocks": 1}


def images() -> torch.Tensor:
    return torch.rand(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_a_vqgan_block_that_changes_width_drops_its_input() -> None:
    torch.manual_seed(0)
    block = VqganBlock(32, 64)
    with torch.no_grad():
        block.conv2.weight.zero_()
        assert block(torch.rand(1, 32, 4, 4)).abs().max() == 0
        same = VqganBlock(32, 32)
        same.conv2.weight.zero_()
        x = torch.rand(1, 32, 4, 4)
        assert torch.equal(same(x), x)


def test_the_vqgan_has_its_published_size_and_no_attention() -> None:
    with torch.device("meta"):
        model = MaskGitVqgan()
    assert sum(parameter.numel() for parameter in model.parameters()) == 54_515_587
    assert not any("attn" in name for name, _ in model.named_modules())
    assert {name for name in model.state_dict() if "nin_shortcut" in name} == {
        f"{side}.{level}.block.0.nin_shortcut.weight"
        for side, level in (("encoder.down", 2), ("encoder.down", 4), ("decoder.up", 1), ("decoder.up", 3))
    }


def test_the_vae_attends_at_its_last_level_and_in_the_middle() -> None:
    with torch.device("meta"):
        model = LdmVae()
    attention = {name for name, _ in model.named_modules() if name.rpartition(".")[2] == "norm"}
    assert {name.rpartition(".")[0] for name in attention} == {
        "encoder.down.4.attn.0", "encoder.down.4.attn.1", "encoder.mid.attn_1", "decoder.mid.attn_1",
    }  # fmt: skip


@pytest.mark.parametrize(("method", "sizes"), [("vqgan", {"z_channels": 8}), ("vae", {"z_channels": 4})])
def test_bases_give_a_feature_and_a_target_for_each_patch_and_pixels_from_predictions(
    method: str, sizes: dict[str, int]
) -> None:
    torch.manual_seed(0)
    base = make_base(method, 4, **SIZES, **sizes)
    features = base.features(images())
    assert features.latents.shape == (2, base.channels, 4, 6) and features.target.shape[:2] == (2, 24)
    assert base.pixels(torch.rand(2, 24, base.out), (4, 6)).shape == images().shape


def test_the_noise_of_a_vae_moves_its_latents_by_their_deviation_and_all_are_scaled() -> None:
    torch.manual_seed(0)
    base = make_base("vae", 4, **SIZES, z_channels=4, scale=0.5)
    posterior = base.vae.posterior(images())
    plain, noisy = base.features(images()), base.features(images(), torch.ones(2, 4, 4, 6))
    torch.testing.assert_close(plain.target, 0.5 * posterior.mean.flatten(1, 2))
    torch.testing.assert_close(noisy.target - plain.target, 0.5 * (0.5 * posterior.logvar).exp().flatten(1, 2))


def test_the_decoder_of_a_vae_is_given_scaled_latents_unless_told_to_undo_the_scale() -> None:
    torch.manual_seed(0)
    base = make_base("vae", 4, **SIZES, z_channels=4, scale=0.5)
    latents = torch.rand(1, 24, 4)
    expected = base.vae.decode(latents.transpose(1, 2).unflatten(2, (4, 6)))
    assert torch.equal(base.pixels(latents, (4, 6)), expected)
    base.decoder_scale = 2.0
    assert torch.equal(base.pixels(latents / 2, (4, 6)), expected)


def test_a_perfect_prediction_of_pixels_is_the_image_at_no_loss() -> None:
    base = PixelBase(4)
    features = base.features(images())
    torch.testing.assert_close(base.pixels(features.target, (4, 6)), images())
    assert all(float(term) == 0 for term in base.terms(features.target, features.target).values())


def test_soft_codes_are_the_mean_code_and_not_the_likeliest() -> None:
    codes = torch.tensor([[0.0, 2.0], [4.0, 0.0]])
    torch.testing.assert_close(soft_codes(torch.zeros(1, 1, 2), codes), torch.tensor([[[2.0, 1.0]]]))


def test_a_codebook_compares_directions_and_its_loss_reaches_both_sides() -> None:
    book = Codebook(3, 2, commitment=0.25)
    with torch.no_grad():
        book.embedding.weight.copy_(torch.tensor([[5.0, 0.0], [0.0, 0.1], [-1.0, -1.0]]))
    z = torch.tensor([[[0.1, 0.01], [0.0, 9.0]]], requires_grad=True)
    found = book(z)
    assert found.indices.tolist() == [[0, 1]]
    torch.testing.assert_close(found.embeds.detach(), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]))
    torch.testing.assert_close(book.lookup(found.indices), found.embeds)
    found.loss.backward()
    assert z.grad is not None and z.grad[0, 0].abs().sum() > 0
    torch.testing.assert_close(found.loss.detach(), 1.25 * found.stats["commitment_loss"])
    weight = book.embedding.weight.grad
    assert weight is not None and weight[0].abs().sum() > 0 and weight[2].abs().sum() == 0


def test_unknown_bases_and_patches_that_the_levels_do_not_make_are_named() -> None:
    with pytest.raises(ValueError, match="expected one of vqgan, vae, pixels, got 'gan'"):
        make_base("gan", 16)
    with pytest.raises(ValueError, match="vae: 3 levels make patches of 4 pixels, got patch=8"):
        make_base("vae", 8, **SIZES, z_channels=4)
