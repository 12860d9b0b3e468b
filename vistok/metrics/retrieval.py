"""Retrieval between two sets of embeddings whose rows belong together: recall at k in both directions.

R@k = share of queries whose own candidate is among the k of highest cosine similarity. Candidates that score the same
as the own one, as those with the same caption do, are taken in random order: a query with b candidates above its own
and t level with it, its own among them, counts min(1, max(0, (k - b) / t)).
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Retrieval:
    """Recall at each k of N pairs, each image among all texts and each text among all images."""

    pairs: int
    image_to_text: dict[int, float]
    text_to_image: dict[int, float]

    def report(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def retrieval(images: Tensor, texts: Tensor, ks: Sequence[int] = (1, 5, 10)) -> Retrieval:
    """images [N, D], texts [N, D], row i of both of one pair -> recall at each k, compared in float64.

    Raises: ValueError for other shapes, values that are not finite, rows of length 0, or a k below 1.
    """
    if images.ndim != 2 or images.shape != texts.shape or not len(images):
        raise ValueError(f"retrieval: expected two [N, D], got {list(images.shape)} and {list(texts.shape)}")
    rows = [_unit_rows(name, values) for name, values in (("images", images), ("texts", texts))]
    scores = rows[0] @ rows[1].T
    return Retrieval(len(images), recall_at(scores, ks), recall_at(scores.T, ks))


def recall_at(scores: Tensor, ks: Sequence[int]) -> dict[int, float]:
    """scores [N, N] of queries (rows) with candidates, own ones on the diagonal -> recall at each k.

    Scores that differ by rounding only (1e-9 of the largest) are level. Raises: ValueError as `retrieval`.
    """
    if scores.ndim != 2 or scores.shape[0] != scores.shape[1] or not len(scores):
        raise ValueError(f"recall_at: expected scores [N, N], got {list(scores.shape)}")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("recall_at: expected finite scores, got NaN or infinity")
    if not ks or min(ks) < 1:
        raise ValueError(f"recall_at: expected every k >= 1, got {list(ks)}")
    values = scores.double()
    slack = 1e-9 * values.abs().max()
    own = values.diagonal()[:, None]
    above = (values > own + slack).sum(1).double()
    level = ((values - own).abs() <= slack).sum(1).double()
    return {k: float(((k - above) / level).clamp(0, 1).mean()) for k in ks}


def _unit_rows(name: str, rows: Tensor) -> Tensor:
    values = rows.double()
    lengths = values.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(values).all()) or not bool((lengths > 0).all()):
        raise ValueError(f"retrieval: expected finite {name} of a length above 0, got NaN, infinity or a row of zeros")
    return torch.nn.functional.normalize(values, dim=1)
