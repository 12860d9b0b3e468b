"""Names of the authors' VQT checkpoints (github.com/andytu28/VQT) to timm's and ours."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

_QUERIES = "transformer.encoder.query_prompt_embeddings"
_BLOCK = re.compile(r"transformer\.encoder\.layer\.(\d+)\.(.+)")
_INSIDE = {
    "attention_norm": "norm1",
    "ffn_norm": "norm2",
    "attn.out": "attn.proj",
    "ffn.fc1": "mlp.fc1",
    "ffn.fc2": "mlp.fc2",
}
_OUTSIDE = {
    "transformer.embeddings.cls_token": "cls_token",
    "transformer.embeddings.position_embeddings": "pos_embed",
    "transformer.embeddings.patch_embeddings.weight": "patch_embed.proj.weight",
    "transformer.embeddings.patch_embeddings.bias": "patch_embed.proj.bias",
    "transformer.encoder.encoder_norm.weight": "norm.weight",
    "transformer.encoder.encoder_norm.bias": "norm.bias",
}


class Official(NamedTuple):
    """Tensors of a checkpoint: of timm's VisionTransformer, of `VQT`, of the head. Other names stay in `readout`."""

    backbone: dict[str, Tensor]
    readout: dict[str, Tensor]
    head: dict[str, Tensor]


def is_official(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the names are the authors'."""
    return any(name.removeprefix("enc.") == _QUERIES for name in tensors)


def split_official(tensors: Mapping[str, Tensor]) -> Official:
    """The authors' names to ours; query, key and value of a block become one tensor, in this order."""
    found = Official({}, {}, {})
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        own = name.removeprefix("enc.")
        block = _BLOCK.fullmatch(own)
        if own == _QUERIES:
            found.readout["queries"] = value
        elif own == "combine_params":
            found.readout["wsum"] = value
        elif own.startswith("head.last_layer."):
            found.head[own.replace(".last_layer", "")] = value
        elif own in _OUTSIDE:
            found.backbone[_OUTSIDE[own]] = value
        elif block is None:
            found.readout[name] = value
        else:
            inside, _, kind = block[2].rpartition(".")
            if inside in ("attn.query", "attn.key", "attn.value"):
                thirds.setdefault(f"blocks.{block[1]}.attn.qkv.{kind}", {})[inside] = value
            elif inside in _INSIDE:
                found.backbone[f"blocks.{block[1]}.{_INSIDE[inside]}.{kind}"] = value
            else:
                found.readout[name] = value
    for name, parts in thirds.items():
        if len(parts) == 3:
            found.backbone[name] = torch.cat([parts[f"attn.{part}"] for part in ("query", "key", "value")])
        else:
            found.backbone.update({f"{name} ({part})": value for part, value in parts.items()})
    return found
