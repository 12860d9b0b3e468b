"""From what a vision tower knows of its patches to the same about visual tokens, through the model's own packing.

P crops or frames, T patches, C channels, M images or videos of N tokens. LLaVA gives patches as they are; LlavaNext and
LlavaOnevision lay crops side by side, cut padding off and end every row with a newline, which is 0 here; the frames of
a video are pooled, with one newline behind them.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_NAME = "pack_image_features"


class Packing:
    """Remembers how a model packed the images that it encoded last, to pack other values of their patches alike."""

    def __init__(self, model: Any) -> None:
        self._core = model.model
        self._crops: list[int] = []
        self._arguments: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})

    def attach(self) -> None:
        """Look on at every packing. It is a method, which takes no hooks: it is shadowed until `remove`."""
        pack = getattr(self._core, _NAME, None)
        if pack is None:
            return

        def watched(image_features: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
            self._crops = [len(each) for each in image_features]
            self._arguments = (args, {name: value for name, value in kwargs.items() if name != "image_newline"})
            return pack(image_features, *args, **kwargs)

        setattr(self._core, _NAME, watched)

    def remove(self) -> None:
        """Leave the model as it was."""
        vars(self._core).pop(_NAME, None)
        self._crops = []

    def of_tokens(self, modality: str, values: Tensor, images: int) -> list[Tensor]:
        """values [P, T, C] of the crops of all images, or the frames of all videos -> [N, C] of each.

        Raises: ValueError if the crops are not those of so many images.
        """
        found = self._packed(modality, values, images)
        if len(found) != images:
            raise ValueError(
                f"prune: expected a vision tower that saw {images} images, got {len(values)} crops of {len(found)}"
            )
        return found

    def _packed(self, modality: str, values: Tensor, images: int) -> list[Tensor]:
        if modality == "video":
            if len(values) % images:
                raise ValueError(f"prune: expected videos of one length, got {len(values)} frames of {images} videos")
            pooled = self._core.apply_pooling(values).reshape(images, -1, values.shape[2])
            return list(torch.nn.functional.pad(pooled, (0, 0, 0, 1)))
        if not hasattr(self._core, _NAME):
            return list(values)
        if sum(self._crops) != len(values):
            raise ValueError(f"prune: expected {sum(self._crops)} crops from the vision tower, got {len(values)}")
        args, kwargs = self._arguments
        pack = getattr(type(self._core), _NAME)
        newline = values.new_zeros(values.shape[2])
        return list(pack(self._core, values.split(self._crops), *args, image_newline=newline, **kwargs)[0])
