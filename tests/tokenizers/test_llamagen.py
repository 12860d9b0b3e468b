"""LlamaGen's tokenizers: published names and sizes, codes of any length, the averaged weights in the file."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, drawn, llamagen_network, meta

SIZES: dict[str, Any] = {
    "ch": 32, "ch_mult": [1, 2], "num_res_blocks": 1, "z_channels": 16, "dim": 4, "codebook_size": 64
}  # fmt: skip


def table(ch: int, mult: list[int], blocks: int, z: int, dim: int, codes: int) -> Shapes:
    """The network, and the history of used codes, which is a tensor too."""
    return llamagen_network(ch, mult, blocks, z, dim, codes) | {"quantize.codebook_used": (65536,)}


def tiny_table() -> Shapes:
    return table(32, [1, 2], 1, 16, 4, 64)


def test_full_size_checkpoints_of_the_authors_fit() -> None:
    for name, mult in (("llamagen_vq16", [1, 1, 2, 2, 4]), ("llamagen_vq8", [1, 2, 2, 4])):
        theirs = meta(table(128, mult, 2, 256, 8, 16384))
        with torch.device("meta"):
            model: Any = vistok.tokenizer(name)
        assert misfits(model, model.rename_keys(theirs)) == []
        model.load_state_dict(model.rename_keys(theirs))
        assert model.patch == 2 ** (len(mult) - 1)
        if name == "llamagen_vq16":
            assert (len(theirs), sum(value.numel() for value in theirs.values())) == (344, 71_948_939)


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["encoder.blocks.0.res.0.norm1.weight"] = tensors.pop("encoder.conv_blocks.0.res.0.norm1.weight")
    del tensors["decoder.conv_blocks.0.res.0.conv1.bias"]
    tensors["quantize.embedding.weight"] = tensors["quantize.embedding.weight"][:9]
    torch.save({"model": tensors}, tmp_path / "vq.pt")
    with pytest.raises(ValueError) as raised:
        vistok.tokenizer("llamagen_vq16", checkpoint=tmp_path / "vq.pt", **SIZES)
    for part in (
        "missing encoder.down.0.block.0.norm1.weight [32]",
        "missing decoder.up.0.block.0.conv1.bias [64]",
        "unexpected encoder.blocks.0.res.0.norm1.weight",
        "quantize.embedding: expected [64, 4], got [9, 4]",
    ):
        assert part in str(raised.value)


def test_a_file_of_a_whole_janus_is_refused() -> None:
    model: Any = vistok.tokenizer("llamagen_vq16", **SIZES)
    whole = {f"gen_vision_model.{name}": value for name, value in meta(tiny_table()).items()}
    problems = misfits(model, model.rename_keys(whole))
    assert any(problem.startswith("unexpected gen_vision_model.encoder.conv_in.weight") for problem in problems)


def test_the_average_is_read_unless_ema_is_false(tmp_path: Path) -> None:
    files = {"model": drawn(tiny_table()), "ema": drawn(tiny_table(), seed=1)}
    torch.save(files | {"steps": 3}, tmp_path / "vq.pt")
    for ema, key in ((True, "ema"), (False, "model")):
        model: Any = vistok.tokenizer("llamagen_vq16", checkpoint=tmp_path / "vq.pt", ema=ema, **SIZES)
        assert torch.equal(model.quantize.embedding, files[key]["quantize.embedding.weight"])
    torch.save({"model": files["model"]}, tmp_path / "vq.pt")
    alone: Any = vistok.tokenizer("llamagen_vq16", checkpoint=tmp_path / "vq.pt", **SIZES)
    assert torch.equal(alone.quantize.embedding, files["model"]["quantize.embedding.weight"])


@torch.no_grad()
def test_ids_are_those_of_the_cosine_whatever_the_length_of_codes_and_any_size_decodes(tmp_path: Path) -> None:
    tensors = drawn(tiny_table())
    tensors["quantize.embedding.weight"] *= torch.linspace(0.1, 10, 64)[:, None]
    torch.save({"model": tensors}, tmp_path / "vq.pt")
    model: Any = vistok.tokenizer("llamagen_vq16", checkpoint=tmp_path / "vq.pt", **SIZES).eval()  # type: ignore[attr-defined]
    images = torch.rand(2, 3, 24, 34, generator=torch.Generator().manual_seed(1))
    tokens, codes = model.encode(images), tensors["quantize.embedding.weight"]
    z = model.features(images * 2 - 1).flatten(2).transpose(1, 2)
    cosines = torch.nn.functional.cosine_similarity(z[..., None, :], codes, dim=-1)
    assert len(tokens.indices.unique()) > 8 and torch.equal(tokens.indices, cosines.argmax(-1))
    assert (torch.cdist(z, codes).argmin(-1) == tokens.indices).float().mean() < 0.9
    torch.testing.assert_close(tokens.embeds.norm(dim=-1), torch.ones(2, 12 * 17))
    other = model.encode(images[:, :, :13, :7])
    assert model.decode(other).shape == (2, 3, 13, 7)
