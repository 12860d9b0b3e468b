"""IBQ's tokenizers: published names and sizes, averages in the file, ids by dot product."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.weights import misfits

from .key_tables import Shapes, drawn, meta
from .test_taming import SIZES, table, tiny_table


def with_averages(shapes: Shapes) -> Shapes:
    dotless = {f"model_ema.{name.replace('.', '')}": shape for name, shape in shapes.items()}
    counters: Shapes = {"model_ema.decay": (), "model_ema.num_updates": (), "loss.discriminator.0.weight": (8, 3, 4, 4)}
    return shapes | dotless | counters | {"model_ema.lossdiscriminator0weight": (8, 3, 4, 4)}


@pytest.mark.parametrize("codes", [1024, 8192, 16384, 262144])
def test_full_size_checkpoints_of_the_authors_fit(codes: int) -> None:
    shapes = table(128, [1, 1, 2, 2, 4], 4, 256, 256, codes)
    theirs = meta(with_averages(shapes))
    with torch.device("meta"):
        model: Any = vistok.tokenizer(f"ibq_{codes}")
    assert misfits(model, model.rename_keys(theirs)) == []
    model.load_state_dict(model.rename_keys(theirs))
    for part, tensors, numbers in (("encoder", 244, 46_752_256), ("decoder", 294, 59_903_875)):
        state = getattr(model, part).state_dict()
        assert (len(state), sum(value.numel() for value in state.values())) == (tensors, numbers)


def test_a_key_that_is_renamed_missing_or_of_another_shape_is_named(tmp_path: Path) -> None:
    tensors = drawn(with_averages(tiny_table()))
    tensors["model_ema.encoderconv_entryweight"] = tensors.pop("model_ema.encoderconv_inweight")
    torch.save({"state_dict": tensors}, tmp_path / "ibq.ckpt")
    named = r"missing encoder.conv_in.weight \[32, 3, 3, 3\]; unexpected model_ema.encoderconv_entryweight"
    with pytest.raises(ValueError, match=named):
        vistok.tokenizer("ibq_1024", checkpoint=tmp_path / "ibq.ckpt", **SIZES)
    del tensors["quant_conv.bias"], tensors["model_ema.quant_convbias"]
    tensors["post_quant_conv.weight"] = tensors["post_quant_conv.weight"][:, :3]
    torch.save({"state_dict": tensors}, tmp_path / "ibq.ckpt")
    with pytest.raises(ValueError, match=r"missing quant_conv.bias \[8\]; post_quant_conv.weight: expected \[16, 8, 1"):
        vistok.tokenizer("ibq_1024", checkpoint=tmp_path / "ibq.ckpt", ema=False, **SIZES)


@torch.no_grad()
def test_averages_are_used_unless_ema_is_false_and_ids_are_largest_dot_products(tmp_path: Path) -> None:
    plain, averages = drawn(tiny_table()), drawn(tiny_table(), seed=1)
    dotless = {f"model_ema.{name.replace('.', '')}": value for name, value in averages.items()}
    torch.save({"state_dict": plain | dotless | {"model_ema.decay": torch.tensor(0.9)}}, tmp_path / "ibq.ckpt")
    images = torch.rand(2, 3, 24, 36, generator=torch.Generator().manual_seed(1))
    for ema, expected in ((True, averages), (False, plain)):
        model: Any = vistok.tokenizer("ibq_1024", checkpoint=tmp_path / "ibq.ckpt", ema=ema, **SIZES)
        codes: Tensor = expected["quantize.embedding.weight"]
        assert torch.equal(model.quantize.codebook, codes)
        tokens = model.eval().encode(images)
        z = model.features(images * 2 - 1).flatten(2).transpose(1, 2)
        assert torch.equal(tokens.indices, (z @ codes.T).argmax(-1))
        nearest = torch.cdist(z, codes).argmin(-1)
        assert 0 < (tokens.indices == nearest).float().mean() < 0.9
        torch.testing.assert_close(tokens.embeds, codes[tokens.indices], rtol=0, atol=1e-5)
        assert model.decode(tokens).shape == images.shape
