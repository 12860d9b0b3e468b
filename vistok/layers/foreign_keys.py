"""Names of tensors in the checkpoints of others: a part of a larger model, taming's names for diffusers' VQModel."""

import re
from collections.abc import Mapping

from torch import Tensor

_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


def part_of(tensors: Mapping[str, Tensor], *prefixes: str) -> dict[str, Tensor]:
    """The tensors under the first of `prefixes` that occurs, without it; all of them where none does.

    Tokenizers are often published inside a whole multimodal model, whose other tensors are none of theirs.
    """
    for prefix in prefixes:
        found = {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
        if found:
            return found
    return dict(tensors)


def taming_to_diffusers(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Taming-transformers' VQGAN (arXiv:2012.09841) under the names of diffusers' VQModel; losses are left out.

    Levels of the decoder count from the other end, and attention is linear where it was a 1x1 convolution: [C, C, 1, 1]
    becomes [C, C]. Names that are diffusers' already stay.
    """
    levels = [int(found[1]) for name in tensors if (found := re.match(r"decoder\.up\.(\d+)\.", name))]
    last = max(levels, default=0)
    return dict(_renamed(name, value, last) for name, value in tensors.items() if not name.startswith("loss."))


def _renamed(name: str, value: Tensor, last: int) -> tuple[str, Tensor]:
    name = re.sub(r"^encoder\.down\.(\d+)\.", r"encoder.down_blocks.\1.", name)
    name = re.sub(r"^decoder\.up\.(\d+)\.", lambda found: f"decoder.up_blocks.{last - int(found[1])}.", name)
    name = re.sub(r"\.mid\.block_([12])\.", lambda found: f".mid_block.resnets.{int(found[1]) - 1}.", name)
    name = name.replace(".mid.attn_1.", ".mid_block.attentions.0.")
    name = re.sub(r"(_blocks\.\d+)\.block\.", r"\1.resnets.", name)
    name = re.sub(r"(_blocks\.\d+)\.attn\.", r"\1.attentions.", name)
    name = re.sub(r"\.(down|up)sample\.conv\.", r".\1samplers.0.conv.", name)
    name = name.replace(".norm_out.", ".conv_norm_out.").replace(".nin_shortcut.", ".conv_shortcut.")
    found = re.match(r"(.*\.attentions\.\d+)\.(norm|q|k|v|proj_out)\.(weight|bias)$", name)
    if found is None:
        return name, value
    if value.ndim == 4:
        value = value.flatten(1)
    return f"{found[1]}.{_ATTENTION[found[2]]}.{found[3]}", value
