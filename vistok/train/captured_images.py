"""Images behind a frozen backbone, in memory: the backbone runs once for each, query tokens read it as often as needed.

N images, B of them in a batch.
"""

import copy

import torch
from torch import Tensor

from vistok.readouts._captured import Captured
from vistok.readouts.vqt import VQT


class CapturedImages:
    """What `vqt.capture` keeps of many images; any VQT of the same backbone, layers and kv_mode can read it."""

    def __init__(self, vqt: VQT, images: Tensor, batch: int = 100) -> None:
        """images [N, 3, H, W] as the backbone takes them. Raises: ValueError without images."""
        if not len(images):
            raise ValueError(f"captured images: expected at least one, got {list(images.shape)}")
        self.all = _joined([_captured(vqt, part) for part in images.split(batch)])

    def __len__(self) -> int:
        return len(self.all.pooled)

    def rows(self, ids: Tensor) -> Captured:
        """The images of ids [B] int64."""
        return self.all.rows(ids)

    def without_blocks(self) -> "CapturedImages":
        """The same for those who only look at the pooled feature."""
        found = copy.copy(self)
        found.all = self.all._replace(kept=())
        return found


def _captured(vqt: VQT, images: Tensor) -> Captured:
    found = vqt.capture(images)
    # No readout looks at the tokens behind the last block but for their type and shape: one of them will do.
    return found._replace(backbone_features=found.backbone_features[:, :1].clone())


def _joined(pieces: list[Captured]) -> Captured:
    kept = []
    for place, block in enumerate(pieces[0].kept):
        blocks = [piece.kept[place] for piece in pieces]
        tensors = zip(*(found.tensors for found in blocks if found is not None), strict=True)
        kept.append(None if block is None else block._replace(tensors=tuple(map(torch.cat, tensors))))
    pooled, tokens = (torch.cat(parts) for parts in zip(*(piece[:2] for piece in pieces), strict=True))
    return Captured(pooled, tokens, tuple(kept), pieces[0].layers)
