import torch

from vistok.layers.foreign_keys import part_of, taming_to_diffusers


def test_a_part_of_a_larger_model_is_cut_out_under_the_first_prefix_that_occurs() -> None:
    values = {name: torch.zeros(1) for name in ("model.vq.a", "model.vq.b.c", "vq.d", "lm.a")}
    assert part_of(values, "none.", "model.vq.", "vq.").keys() == {"a", "b.c"}
    assert part_of(values, "vq.").keys() == {"d"}
    assert part_of(values, "none.").keys() == values.keys()


def test_every_kind_of_taming_name_becomes_diffusers() -> None:
    names = {
        "encoder.down.1.block.0.nin_shortcut.weight": "encoder.down_blocks.1.resnets.0.conv_shortcut.weight",
        "encoder.down.1.downsample.conv.bias": "encoder.down_blocks.1.downsamplers.0.conv.bias",
        "encoder.down.2.attn.1.norm.weight": "encoder.down_blocks.2.attentions.1.group_norm.weight",
        "encoder.mid.block_2.norm1.bias": "encoder.mid_block.resnets.1.norm1.bias",
        "decoder.mid.attn_1.proj_out.bias": "decoder.mid_block.attentions.0.to_out.0.bias",
        "decoder.up.2.block.2.conv1.weight": "decoder.up_blocks.0.resnets.2.conv1.weight",
        "decoder.up.0.block.0.conv1.weight": "decoder.up_blocks.2.resnets.0.conv1.weight",
        "decoder.up.1.upsample.conv.weight": "decoder.up_blocks.1.upsamplers.0.conv.weight",
        "decoder.norm_out.weight": "decoder.conv_norm_out.weight",
        "quantize.embedding.weight": "quantize.embedding.weight",
        "quant_conv.weight": "quant_conv.weight",
    }
    given = {name: torch.zeros(1) for name in names} | {"loss.logvar": torch.zeros(1)}
    renamed = taming_to_diffusers(given)
    assert list(renamed) == list(names.values())
    assert taming_to_diffusers(renamed).keys() == renamed.keys()


def test_attention_loses_the_axes_of_a_1x1_convolution() -> None:
    weight = torch.rand(4, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    renamed = taming_to_diffusers({"encoder.mid.attn_1.q.weight": weight, "quant_conv.weight": weight})
    assert torch.equal(renamed["encoder.mid_block.attentions.0.to_q.weight"], weight[:, :, 0, 0])
    assert renamed["quant_conv.weight"].shape == (4, 4, 1, 1)
