"""Frozen vision models of any library as teachers: images [B, 3, H, W] in [0, 1] -> features [B, D, h, w].

A training takes any callable of this kind; the builders here are what a recipe can name.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Teacher = Callable[[Tensor], Tensor]
"""images [B, 3, H, W] in [0, 1] -> features [B, D, h, w]."""


def lvlm_tower(model: str = "micro_lvlm", layer: int = -1) -> Teacher:
    """The CLIP-like tower of a LLaVA-like model, as `vistok.lvlm.load` finds it; hidden states behind `layer` blocks.

    layer: 1 = behind the first block, -1 = behind the last. Raises: ValueError if there is no such tower or layer.
    """
    from vistok.lvlm.load import load_lvlm

    loaded, processor = load_lvlm(model)
    tower: Any = getattr(getattr(loaded, "model", None), "vision_tower", None) or nn.Identity()
    layers: Any = getattr(getattr(tower, "encoder", None), "layers", ())
    depth = len(layers)
    count = layer if layer > 0 else depth + 1 + layer
    if not 1 <= count <= depth:
        raise ValueError(f"teacher {model!r}: expected a tower and a layer of it, 1..{depth}, got {layer}")
    tower.encoder.layers = layers[:count]
    side = tower.config.image_size
    cells = side // tower.config.patch_size
    mean, std = (torch.tensor(values)[:, None, None] for values in _pixel_statistics(processor))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        hidden: Tensor = tower(pixel_values=(_resized(images, side) - mean) / std).last_hidden_state
        grid: Tensor = hidden[:, -cells * cells :].transpose(1, 2).unflatten(2, (cells, cells))
        return grid

    return features


def timm_model(model: str, layer: int = -1, *, pretrained: bool = True, **settings: Any) -> Teacher:
    """Any model of timm with `forward_intermediates`, for example vit_small_patch14_dinov2, frozen.

    settings: of `timm.create_model`, for example img_size, to which pictures are resized.
    layer: block whose features are taken, -1 = the last, behind the final norm.
    """
    from timm import create_model
    from timm.data.config import resolve_model_data_config

    net: Any = create_model(model, pretrained=pretrained, num_classes=0, **settings).eval().requires_grad_(False)
    data: dict[str, Any] = resolve_model_data_config(net)  # type: ignore[no-untyped-call]
    side: int = settings.get("img_size", data["input_size"][-1])
    mean, std = (torch.tensor(data[name])[:, None, None] for name in ("mean", "std"))

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        found: list[Tensor] = net.forward_intermediates(
            (_resized(images, side) - mean) / std,
            indices=[layer],
            norm=layer == -1,
            output_fmt="NCHW",
            intermediates_only=True,
        )
        return found[0]

    return features


TEACHERS: dict[str, Callable[..., Teacher]] = {"lvlm_tower": lvlm_tower, "timm_model": timm_model}


def make_teacher(settings: Mapping[str, Any]) -> Teacher:
    """{"method": a name here, its arguments} -> the teacher. Raises: ValueError naming the methods there are."""
    arguments = dict(settings)
    method = arguments.pop("method", None)
    if method not in TEACHERS:
        raise ValueError(f"teacher: expected a method, one of {', '.join(TEACHERS)}, got {method!r}")
    return TEACHERS[method](**arguments)


def _resized(images: Tensor, side: int) -> Tensor:
    if tuple(images.shape[2:]) == (side, side):
        return images
    return functional.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def _pixel_statistics(processor: Any) -> tuple[list[float], list[float]]:
    return processor.image_processor.image_mean, processor.image_processor.image_std
