"""How well depth survives a codec: AbsRel, delta_1 (Eigen et al. 2014, arXiv:1406.2283, section 4.1), order of things.

AbsRel = mean |d - d*| / d*;  delta_1 = share of pixels with max(d / d*, d* / d) < 1.25, d* true, d decoded. A codec's
tokens say what is nearer, not how far: metres are restored with the limits of the true map itself, at the side that the
codec sees. So this measures shape and order, as if the range were known, not a guess of the range.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from vistok.data.scenes.render import MIN_SIDE, render
from vistok.metrics.codebook_health import CodebookHealth, health_of

_NEAR_ENOUGH = 1.25
_AT_ONCE = 64


def abs_rel(predicted: Tensor, target: Tensor) -> Tensor:
    """Maps [B, ...] of depth > 0 -> mean relative error of each [B]. Raises: ValueError if shapes differ."""
    _check(predicted, target)
    return ((predicted - target).abs() / target).flatten(1).mean(1)


def delta_1(predicted: Tensor, target: Tensor) -> Tensor:
    """Maps [B, ...] of depth -> share of pixels within a factor of 1.25 [B]; none <= 0 is. Raises: as `abs_rel`."""
    _check(predicted, target)
    near = torch.maximum(predicted / target, target / predicted) < _NEAR_ENOUGH
    # Both ratios of a depth below 0 are negative, hence below any factor.
    return (near & (predicted > 0)).flatten(1).float().mean(1)


def _check(predicted: Tensor, target: Tensor) -> None:
    if predicted.shape != target.shape or not bool((target > 0).all()):
        raise ValueError(
            f"depth: expected maps of one shape and targets > 0, got {list(predicted.shape)} and "
            f"{list(target.shape)}, the least target {float(target.min()) if target.numel() else 'none'}"
        )


class DepthTrip(NamedTuple):
    """One batch through a codec: target and restored [B, 1, S, S] in the unit of the maps, indices [B, N]."""

    target: Tensor
    restored: Tensor
    indices: Tensor


@torch.no_grad()
def depth_trip(codec: Any, maps: Tensor) -> DepthTrip:
    """maps [B, H, W] or [B, 1, H, W] -> through a depth codec and back, restored with each map's own limits."""
    ranged = codec.range.apply(maps)
    target = F.interpolate(ranged.values, (codec.image_size, codec.image_size), mode="nearest-exact")
    tokens = codec.encode(maps)
    decoded = codec.decode(tokens)
    limits = ranged.low, ranged.high
    return DepthTrip(codec.range.undo(target, *limits), codec.range.undo(decoded, *limits), tokens.indices)


@dataclass(frozen=True)
class DepthScores:
    """Means over scenes: abs_rel, delta_1; nearest, farthest, pairs: how often the decoded map tells which thing of all
    is nearest, farthest, and which of two is nearer (None if no scene had two). health: of the codebook."""

    scenes: int
    abs_rel: float
    delta_1: float
    nearest: float | None
    farthest: float | None
    pairs: float | None
    health: CodebookHealth

    def report(self) -> dict[str, Any]:
        """Plain data for JSON."""
        numbers = {
            name: getattr(self, name) for name in ("scenes", "abs_rel", "delta_1", "nearest", "farthest", "pairs")
        }
        return numbers | {"codebook": self.health.report()}


def scene_depth_scores(codec: Any, seeds: Iterable[int]) -> DepthScores:
    """Round trips of rendered scenes; a thing's depth is read as the median of the decoded map where the thing shows.

    Raises: ValueError without any seed.
    """
    scenes = [render(seed, max(MIN_SIDE, codec.image_size)) for seed in seeds]
    if not scenes:
        raise ValueError("scene_depth_scores: expected at least one seed, got none")
    health = CodebookHealth.empty(len(codec.codes))
    errors, shares, orders = [], [], _Orders()
    for start in range(0, len(scenes), _AT_ONCE):
        part = scenes[start : start + _AT_ONCE]
        trip = depth_trip(codec, torch.stack([torch.from_numpy(scene.depth) for scene in part]))
        errors.append(abs_rel(trip.restored, trip.target))
        shares.append(delta_1(trip.restored, trip.target))
        health = health.merged(health_of((len(codec.codes),), trip.indices)[0])
        for scene, restored in zip(part, trip.restored[:, 0], strict=True):
            orders.add(torch.from_numpy(scene.masks), restored)
    return DepthScores(
        scenes=len(scenes),
        abs_rel=float(torch.cat(errors).mean()),
        delta_1=float(torch.cat(shares).mean()),
        **orders.shares(),
        health=health,
    )


class _Orders:
    """Counts right answers about which things are nearer."""

    def __init__(self) -> None:
        self.right = dict.fromkeys(("nearest", "farthest", "pairs"), 0)
        self.asked = dict.fromkeys(self.right, 0)

    def add(self, masks: Tensor, restored: Tensor) -> None:
        """masks [things, H, W] bool of one scene, the nearest thing first; restored [S, S]: its decoded map.

        A scene with a single thing, or with one that no pixel of the map shows, asks nothing.
        """
        if len(masks) < 2:
            return
        shown = F.interpolate(masks[None].float(), restored.shape, mode="nearest-exact")[0] > 0
        if not bool(shown.flatten(1).any(1).all()):
            return
        read = [float(restored[mask].median()) for mask in shown]
        self._count("nearest", read.index(min(read)) == 0)
        self._count("farthest", read.index(max(read)) == len(read) - 1)
        for nearer, farther in combinations(read, 2):
            self._count("pairs", nearer < farther)

    def _count(self, name: str, right: bool) -> None:
        self.right[name] += right
        self.asked[name] += 1

    def shares(self) -> dict[str, float | None]:
        """Share of right answers of each kind, None where nothing was asked."""
        return {name: self.right[name] / asked if asked else None for name, asked in self.asked.items()}
