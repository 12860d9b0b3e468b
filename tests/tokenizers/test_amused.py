"""aMUSEd's VQGAN: folders that diffusers wrote, with the ids and pixels of diffusers' own VQModel."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.vq_model import VQModel
from huggingface_hub import constants

import vistok
from vistok.weights import misfits

CONFIG: dict[str, Any] = {
    "down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (32, 32, 64), "layers_per_block": 1, "latent_channels": 16, "num_vq_embeddings": 64,
    "vq_embed_dim": 8, "mid_block_add_attention": False, "lookup_from_codebook": True,
}  # fmt: skip


def written(folder: Path, **config: Any) -> VQModel:
    torch.manual_seed(0)
    theirs = VQModel(**{**CONFIG, **config}).eval()
    with torch.no_grad():
        theirs.quantize.embedding.weight.normal_(std=0.3)
        theirs.quant_conv.weight.mul_(4)
    theirs.save_pretrained(folder)
    return theirs


def test_a_full_size_checkpoint_fits_and_misfits_are_named() -> None:
    sizes = {"block_out_channels": (128, 256, 256, 512, 768), "layers_per_block": 2, "latent_channels": 64}
    types = {"down_block_types": ("DownEncoderBlock2D",) * 5, "up_block_types": ("UpDecoderBlock2D",) * 5}
    with torch.device("meta"):
        model: Any = vistok.tokenizer("amused")
        theirs = VQModel(**{**CONFIG, **sizes, **types, "num_vq_embeddings": 8192, "vq_embed_dim": 64}).state_dict()
    assert misfits(model, theirs) == []
    assert sum(value.numel() for value in theirs.values()) == 146_244_675
    theirs["encoder.conv_entry.bias"] = theirs.pop("encoder.conv_in.bias")
    assert misfits(model, theirs) == ["missing encoder.conv_in.bias [128]", "unexpected encoder.conv_entry.bias [128]"]


@torch.no_grad()
def test_ids_and_pixels_are_those_of_diffusers_from_the_folder_it_wrote(tmp_path: Path) -> None:
    theirs = written(tmp_path)
    model: Any = vistok.tokenizer("amused", checkpoint=tmp_path)
    assert (model.patch, model.dim, model.codebook_sizes) == (4, 8, (64,))
    images = torch.rand(2, 3, 24, 16, generator=torch.Generator().manual_seed(1))
    tokens = model.eval().encode(images)
    latents = theirs.encode(images).latents
    ids = theirs.quantize(latents)[2][2]
    assert len(set(ids.tolist())) > 4
    assert torch.equal(tokens.indices.flatten(), ids)
    pixels = theirs.decode(ids, force_not_quantize=True, shape=(2, 6, 4, 8)).sample
    torch.testing.assert_close(model.decode(tokens), pixels.clamp(0, 1), rtol=0, atol=1e-5)


def test_a_model_of_other_blocks_is_refused(tmp_path: Path) -> None:
    written(tmp_path, down_block_types=("DownEncoderBlock2D",) * 2 + ("AttnDownEncoderBlock2D",))
    with pytest.raises(ValueError, match=r"VQModel of plain blocks, got VQModel of \['AttnDownEncoderBlock2D'"):
        vistok.tokenizer("amused", checkpoint=tmp_path)


def test_a_folder_of_a_repository_on_the_hub_is_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = tmp_path / "models--amused--amused-512"
    theirs = written(repo / "snapshots" / commit / "vqvae")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    model: Any = vistok.tokenizer("amused", checkpoint="hf:amused/amused-512/vqvae")
    assert torch.equal(model.encoder.conv_in.weight, theirs.encoder.conv_in.weight)
