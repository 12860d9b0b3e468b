"""One forward of a backbone, as far as queries need it."""

from typing import NamedTuple

from torch import Tensor

from vistok.readouts._blocks import Kept


class Captured(NamedTuple):
    """pooled [B, P], backbone_features [B, N, D], and what each block of `layers` left behind.

    None stands for a block that was skipped. Queries can read it any number of times.
    """

    pooled: Tensor
    backbone_features: Tensor
    kept: tuple[Kept | None, ...]
    layers: tuple[int, ...]

    def rows(self, index: Tensor | slice) -> "Captured":
        """The same of some of the images: index [b] int64, or a slice."""
        kept = tuple(None if part is None else part.map(lambda x: x[index]) for part in self.kept)
        return Captured(self.pooled[index], self.backbone_features[index], kept, self.layers)
