"""Janus' VQGAN: published names and sizes, ids of JanusVQVAE with unit codes, and its trap with others."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.models.janus.configuration_janus import JanusVQVAEConfig
from transformers.models.janus.modeling_janus import JanusVQVAE

import vistok
from vistok.weights import misfits

from .key_tables import drawn, llamagen_network, meta

SIZES: dict[str, Any] = {
    "base_channels": 32, "channel_multiplier": [1, 2], "num_res_blocks": 1, "latent_channels": 16, "dim": 4,
    "codebook_size": 64,
}  # fmt: skip


def reference(tensors: dict[str, Tensor], patches: int = 8) -> JanusVQVAE:
    config = JanusVQVAEConfig(
        base_channels=32, channel_multiplier=[1, 2], num_res_blocks=1, latent_channels=16, embed_dim=4,
        num_embeddings=64, num_patches=patches,
    )  # fmt: skip
    theirs = JanusVQVAE(config).eval()
    theirs.load_state_dict(tensors)
    return theirs


def test_full_size_checkpoints_of_the_authors_and_of_transformers_fit() -> None:
    with torch.device("meta"):
        model: Any = vistok.tokenizer("janus")
        theirs = JanusVQVAE(JanusVQVAEConfig())
    state = model.state_dict()
    assert len(state) == 343 and sum(value.numel() for value in state.values()) == 71_883_403
    authors = meta(llamagen_network(128, [1, 1, 2, 2, 4], 2, 256, 8, 16384) | {"quantize.codebook_used": (65536,)})
    assert len(authors) == 344
    inside = {f"gen_vision_model.{name}": value for name, value in authors.items()}
    assert len(misfits(model, model.rename_keys(authors))) > 100  # a LlamaGen's file, which has the same names
    assert misfits(model, model.rename_keys(inside | meta({"language_model.lm_head.weight": (4, 4)}))) == []
    whole = {f"model.vqmodel.{name}": value for name, value in theirs.state_dict().items()}
    assert misfits(model, model.rename_keys(whole | meta({"model.aligner.fc1.weight": (4, 4)}))) == []
    del inside["gen_vision_model.decoder.conv_blocks.0.attn.1.q.weight"]
    assert misfits(model, model.rename_keys(inside)) == ["missing decoder.up.0.attn.1.q.weight [512, 512, 1, 1]"]


@torch.no_grad()
def test_ids_and_pixels_are_those_of_transformers_where_codes_have_length_1(tmp_path: Path) -> None:
    own = drawn({name: tuple(v.shape) for name, v in vistok.tokenizer("janus", **SIZES).state_dict().items()})  # type: ignore[attr-defined]
    own["quantize.embedding.weight"] = torch.nn.functional.normalize(own["quantize.embedding.weight"], dim=1)
    torch.save(own, tmp_path / "vq.pt")
    model: Any = vistok.tokenizer("janus", checkpoint=tmp_path / "vq.pt", **SIZES)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    tokens, theirs = model.eval().encode(images), reference(own)
    ids = theirs.encode(2 * images - 1).image_tokens.view(2, -1)
    assert len(set(ids.flatten().tolist())) > 4
    assert torch.equal(tokens.indices, ids)
    pixels = theirs.decode(ids)
    torch.testing.assert_close(model.decode(tokens), ((pixels + 1) / 2).clamp(0, 1), rtol=0, atol=1e-5)
    wide = images[:, :, :8]
    assert model.decode(model.encode(wide)).shape == wide.shape


@torch.no_grad()
def test_codes_of_any_length_are_compared_at_length_1_which_transformers_does_not(tmp_path: Path) -> None:
    own = drawn({name: tuple(v.shape) for name, v in vistok.tokenizer("janus", **SIZES).state_dict().items()})  # type: ignore[attr-defined]
    lengths = torch.linspace(0.1, 10, 64)[:, None]
    unit = torch.nn.functional.normalize(own["quantize.embedding.weight"], dim=1)
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    ids = []
    for rows in (unit, unit * lengths):
        torch.save(own | {"quantize.embedding.weight": rows}, tmp_path / "vq.pt")
        model: Any = vistok.tokenizer("janus", checkpoint=tmp_path / "vq.pt", **SIZES)
        ids.append(model.eval().encode(images).indices)
    assert torch.equal(*ids)
    stretched = reference(own | {"quantize.embedding.weight": unit * lengths})
    assert (stretched.encode(2 * images - 1).image_tokens.view(2, -1) == ids[0]).float().mean() < 0.9


@torch.no_grad()
def test_the_authors_names_give_the_same_ids_as_transformers_names(tmp_path: Path) -> None:
    theirs = drawn(llamagen_network(32, [1, 2], 1, 16, 4, 64))
    torch.save(
        {"model": {f"gen_vision_model.{name}": value for name, value in theirs.items()}}, tmp_path / "authors.pt"
    )
    model: Any = vistok.tokenizer("janus", checkpoint=tmp_path / "authors.pt", **SIZES)
    torch.save({f"model.vqmodel.{name}": value for name, value in model.state_dict().items()}, tmp_path / "hf.bin")
    again: Any = vistok.tokenizer("janus", checkpoint=tmp_path / "hf.bin", **SIZES)
    images = torch.rand(1, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    assert torch.equal(model.eval().encode(images).indices, again.eval().encode(images).indices)
    coarsest = theirs["decoder.conv_blocks.0.res.0.conv1.weight"]
    assert torch.equal(model.state_dict()["decoder.up.0.block.0.conv1.weight"], coarsest)
