"""What new rows of an embedding or head start from: a function of the old rows.

A start takes old rows [V, D] float32, how many new rows there are and a generator, and gives [n, D] float32. It is
called once for the embedding and once more for a head that is not tied to it. D width, n new rows, V old ones.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

RowStart = Callable[[Tensor, int, torch.Generator], Tensor]


def mean(noise: float = 1e-3) -> RowStart:
    """The mean of the old rows plus normal noise of that standard deviation, without which all would stay equal."""
    return lambda old, count, generator: old.mean(0) + noise * _normal(old, count, generator)


def normal() -> RowStart:
    """Normal draws with each dimension's mean and standard deviation over the old rows."""
    return lambda old, count, generator: old.mean(0) + old.std(0) * _normal(old, count, generator)


def mean_cov(scale: float = 1e-5) -> RowStart:
    """Normal draws around the mean with the old rows' covariance times `scale` (Hewitt 2021), as transformers does."""

    def start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
        centred = (old - old.mean(0)) / math.sqrt(len(old))
        draws = torch.randn(count, len(old), generator=generator).to(old)
        rows: Tensor = old.mean(0) + math.sqrt(scale) * draws @ centred
        return rows

    return start


def codebook(vectors: Tensor) -> RowStart:
    """Rows that lie to one another as code vectors [n, d] do: their principal axes, each scaled to the old rows.

    The k-th principal axis of the codes becomes the k-th of the old rows, with the old rows' mean and spread there;
    where codes have fewer axes the rest stays at the mean. Raises: ValueError when called for another number of rows.
    """

    def start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
        _check_count("codebook", len(vectors), count)
        codes = vectors.to(old) - vectors.to(old).mean(0)
        left, strength, _ = torch.linalg.svd(codes, full_matrices=False)
        rank = int((strength > strength.max() * 1e-6).sum())
        _, spread, axes = torch.linalg.svd(old - old.mean(0), full_matrices=False)
        axis_count = min(rank, len(axes))
        placed = left[:, :axis_count] * math.sqrt(count) * spread[:axis_count] / math.sqrt(len(old))
        rows: Tensor = old.mean(0) + placed @ axes[:axis_count]
        return rows

    return start


def sincos(places: Tensor, frequencies: int = 8, strength: float = 0.5) -> RowStart:
    """The mean plus sines and cosines of places [n] in 0..1 along random directions, for bins on an axis.

    Neighbouring bins start close, distant ones apart. strength: length of the sum of waves, in lengths of old rows
    about their mean. Raises: ValueError when called for another number of rows.
    """

    def start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
        _check_count("sincos", len(places), count)
        angles = math.pi * places.to(old)[:, None] * 2.0 ** torch.arange(frequencies).to(old)
        waves = torch.cat((angles.sin(), angles.cos()), 1) * 0.5 ** torch.arange(frequencies).to(old).repeat(2)
        directions = torch.nn.functional.normalize(_normal(old, 2 * frequencies, generator), dim=1)
        spread = (old - old.mean(0)).norm(dim=1).mean()
        rows: Tensor = old.mean(0) + strength * spread * waves @ directions
        return rows

    return start


def anchored(weights: Tensor, anchors: Tensor) -> RowStart:
    """Sums of old rows: weights [n, A] of the rows with ids anchors [A] int64 (arXiv:2506.06607, second phase).

    `matching_pursuit` finds sparse weights where old and new tokens have features in common; carried over here, they
    put a new row where its anchors' meaning is. Raises: ValueError for weights that do not fit, or an anchor that is
    no old row.
    """

    def start(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
        _check_count("anchored", len(weights), count)
        if weights.shape[1] != len(anchors) or int(anchors.max()) >= len(old) or int(anchors.min()) < 0:
            raise ValueError(
                f"anchored: expected weights [n, A] of A anchors among {len(old)} old rows, got {list(weights.shape)} "
                f"and {len(anchors)} anchors up to {int(anchors.max())}"
            )
        return weights.to(old) @ old[anchors]

    return start


def _normal(old: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randn(count, old.shape[1], generator=generator).to(old)


def _check_count(name: str, given: int, count: int) -> None:
    if given != count:
        raise ValueError(f"{name}: expected one value for each of {count} new rows, got {given}")
