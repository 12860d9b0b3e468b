"""What every image tokenizer asks of a batch of images, and how it makes their sides fit."""

import torch
from torch import Tensor, nn


def check_images(owner: str, images: Tensor) -> None:
    """Raise ValueError, beginning with `owner`, unless images are float [B, 3, H, W] in [0, 1]."""
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point() or 0 in images.shape:
        raise ValueError(
            f"{owner}: expected float images [B, 3, H, W] in [0, 1], got {list(images.shape)} {images.dtype}"
            + ("; divide uint8 images by 255" if images.dtype == torch.uint8 else "")
        )
    # The range needs a device synchronisation, which a compiled graph cannot hold.
    if not torch.compiler.is_compiling() and images.numel():
        low, high = float(images.detach().min()), float(images.detach().max())
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"{owner}: expected images in [0, 1], got {low:.3g}..{high:.3g}; use model.preprocess")


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """[B, 3, H, W] with rows below and columns to the right mirrored until both sides are multiples."""
    height, width = images.shape[2:]
    down, right = -height % multiple, -width % multiple
    if not down and not right:
        return images
    # Reflection needs fewer new pixels than there are old ones; tiny images repeat their edge instead.
    mode = "reflect" if down < height and right < width else "replicate"
    return nn.functional.pad(images, (0, right, 0, down), mode=mode)


def check_finite(owner: str, values: Tensor, what: str) -> None:
    """Raise ValueError, beginning with `owner`, naming the items of values [B, ...] that hold an infinity or a NaN."""
    if torch.compiler.is_compiling():
        return
    bad = ~torch.isfinite(values.detach()).flatten(1).all(dim=1)
    if bool(bad.any()):
        raise ValueError(
            f"{owner}: expected finite {what}, got others in images {bad.nonzero()[:, 0].tolist()} of the batch; "
            "compute in bfloat16 or float32"
        )
