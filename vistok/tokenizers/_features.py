"""What vision encoders share as tokenizers: the choice of layers, their pixel statistics, maps of features to tokens.

B images, C channels, h x w cells, P prefix tokens (class, registers), N = P + h w tokens.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vistok.layers.preprocess import Preprocess
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


def chosen_layers(owner: str, layers: int | Sequence[int], count: int) -> list[int]:
    """Layers as ids in 0..count-1: the last n for a number, else those named, from the end if negative.

    Raises: ValueError for none, one that is not there, or ids that do not ascend.
    """
    if isinstance(layers, int):
        if not 1 <= layers <= count:
            raise ValueError(f"{owner}: expected layers to be the last 1..{count}, got {layers}")
        return list(range(count - layers, count))
    ids = [layer + count if layer < 0 else layer for layer in layers]
    if not ids or ids != sorted(set(ids)) or not 0 <= ids[0] <= ids[-1] < count:
        raise ValueError(f"{owner}: expected layers to ascend within {-count}..{count - 1}, got {list(layers)}")
    return ids


def standardize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """images [B, 3, H, W] in [0, 1] -> (images - mean) / std per channel, float32."""
    centre, spread = (torch.tensor(values, device=images.device).view(3, 1, 1) for values in (mean, std))
    return (images.float() - centre) / spread


def picture_settings(size: Sequence[int], crop_pct: float, mode: str, interpolation: str) -> dict[str, Any]:
    """Settings of `Preprocess` for weights of input size (H, W), in the words of timm and open_clip.

    mode: "center" or "shortest" (shorter side, then the middle), "squash" (both sides, as for every rectangle).
    Raises: ValueError for other modes.
    """
    height, width = size
    if mode not in ("center", "shortest", "squash"):
        raise ValueError(f"preprocess: expected a mode of center, shortest or squash, got {mode!r}; state preprocess=")
    how = {} if interpolation == "bicubic" else {"interpolation": interpolation}
    if height != width:
        return {"resize": [height, width], **how}
    larger = int(height / crop_pct + 1e-6)  # 336 / 0.875 and its like are whole
    return {"resize": [larger, larger] if mode == "squash" else larger, "crop": height, **how}


def fitted(preprocess: Mapping[str, Any], size: tuple[int, int] | None) -> Preprocess:
    """Pictures as stated, made `size` (H, W) if that is given and they would come in another one, which fails later.

    The part of a picture that a crop leaves stays the same.
    """
    stated = Preprocess(**preprocess)
    both = stated.resize if isinstance(stated.resize, Sequence) else None
    made = both if stated.crop is None else (stated.crop, stated.crop)
    if size is None or made is None or tuple(made) == size:
        return stated
    larger = min(both) if both is not None else stated.resize
    kept = stated.crop / larger if stated.crop is not None and isinstance(larger, int) else 1.0
    mode = "shortest" if both is None else "squash"
    return Preprocess(**picture_settings(size, kept, mode, stated.interpolation))


def by_timm(tensors: Mapping[str, Tensor], net: nn.Module) -> dict[str, Tensor]:
    """Weights of `net` as timm reads them: authors' names to its own, position tables resampled to the net's size.

    Weights that timm cannot make sense of come back as they are: strict loading then names what does not fit.
    """
    read: Callable[..., dict[str, Tensor]] | None = getattr(
        sys.modules[type(net).__module__], "checkpoint_filter_fn", None
    )
    if read is None:
        return dict(tensors)
    try:
        return read(dict(tensors), net)
    except (AttributeError, IndexError, KeyError, RuntimeError, ValueError):
        return dict(tensors)


def check_fixed_size(owner: str, images: Tensor, size: tuple[int, int] | None) -> None:
    """Raise ValueError, beginning with `owner`, if the encoder takes images of one size only and these have another."""
    if size is not None and tuple(images.shape[2:]) != size:
        raise ValueError(
            f"{owner}: expected images of {size[0]}x{size[1]} pixels, got {images.shape[2]}x{images.shape[3]}; use "
            "model.preprocess, or give image_size="
        )


def tokens_of_maps(
    spec: TokenSpec, maps: Sequence[Tensor], prefix: Sequence[Tensor], padded: Sequence[int]
) -> TokenTensor:
    """Layers [B, C, h, w] and their prefixes [B, P, C] -> tokens, layers side by side as channels, prefix first.

    spec: what is known beforehand. padded: (H, W) that the encoder saw. Cells of prefix tokens are (-1, -1).
    Raises: ValueError if the maps are not of the width and grid that the spec says.
    """
    features = torch.cat(list(maps), 1)
    batch, width, rows, cols = features.shape
    expected = (padded[0] // spec.patch, padded[1] // spec.patch)
    if width != spec.dim or (rows, cols) != expected:
        raise ValueError(
            f"{spec.name}: expected {spec.dim} channels on {expected[0]}x{expected[1]} cells, got {width} on "
            f"{rows}x{cols}; its feature_info does not describe these layers"
        )
    embeds = features.flatten(2).transpose(1, 2)
    coords = grid_coords(rows, cols, batch, features.device)
    if prefix:
        before = torch.cat(list(prefix), 2)
        embeds = torch.cat([before, embeds], 1)
        coords = torch.cat([coords.new_full((batch, before.shape[1], 2), -1), coords], 1)
    return TokenTensor(spec=replace(spec, grid=(rows, cols)), embeds=embeds, coords=coords)
