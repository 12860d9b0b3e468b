"""Outlines and run lengths, as COCO writes masks, to pixels.

Run lengths go down the columns, zeros first; as text, each is written in groups of five bits, the lowest first,
from the fourth on as the difference to the one two before. Source: cocoapi, maskApi (the format of `rleToString`).
A polygon holds the pixels whose centre is in it, by the even-odd rule; several polygons are one thing.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
_FIRST, _MORE, _NEGATIVE, _BITS, _GROUP = 48, 0x20, 0x10, 0x1F, 5
_LONGEST = 13  # groups of a number: 64 bits
_SLACK = 1.0  # pixels that an outline may lie over the edge: annotation files round


def filled(segmentation: Any, size: tuple[int, int]) -> Mask:
    """A mask [H, W]: of polygons [[x1, y1, x2, y2, ..], ..], or {"counts": text or numbers, "size": [H, W]}.

    Raises: ValueError for anything else, or run lengths of another size.
    """
    if isinstance(segmentation, Mapping):
        counts, there = segmentation.get("counts"), segmentation.get("size")
        if not isinstance(there, Sequence) or [*there] != [*size]:
            raise ValueError(f"run lengths: expected those of {size[0]} x {size[1]} pixels (H x W), got {there!r:.40}")
        return _from_runs(counts_in(counts) if isinstance(counts, str | bytes) else counts, size)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str | bytes) or not segmentation:
        raise ValueError(f"expected polygons or run lengths as COCO has them, got {segmentation!r:.80}")
    mask = np.zeros(size, bool)
    for polygon in segmentation:
        mask |= _from_polygon(polygon, size)
    return mask


def counts_in(text: str | bytes) -> list[int]:
    """Run lengths written as text. Raises: ValueError if it is cut off or has other characters."""
    counts: list[int] = []
    value = groups = 0
    for character in text.encode("ascii", "replace") if isinstance(text, str) else text:
        group = character - _FIRST
        if not 0 <= group < 2 * _MORE or groups == _LONGEST:
            raise ValueError(f"run lengths: expected COCO's text, got {text[:40]!r}")
        value |= (group & _BITS) << (_GROUP * groups)
        groups += 1
        if group & _MORE:
            continue
        if group & _NEGATIVE:
            value -= 1 << (_GROUP * groups)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = groups = 0
    if groups:
        raise ValueError(f"run lengths: expected COCO's text, this one ends in the middle of a number: {text[-40:]!r}")
    return counts


def _from_runs(counts: Any, size: tuple[int, int]) -> Mask:
    whole = isinstance(counts, Sequence) and all(type(count) is int and count >= 0 for count in counts)
    if not whole or sum(counts) != size[0] * size[1]:
        raise ValueError(f"run lengths: expected numbers >= 0 that make {size[0]} x {size[1]}, got {counts!r:.80}")
    values = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(values.reshape(size[1], size[0]).T)


def _from_polygon(polygon: Any, size: tuple[int, int]) -> Mask:
    try:
        corners = np.array(polygon, np.float64).reshape(-1, 2)
    except (ValueError, TypeError) as error:
        raise ValueError(f"polygon: expected numbers x1, y1, x2, y2, .., got {polygon!r:.80}") from error
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError(f"polygon: expected three corners or more, got {polygon!r:.80}")
    height, width = size
    mask = np.zeros(size, bool)
    ends = np.roll(corners, -1, 0)
    top, bottom = (int(np.clip(side, 0, height)) for side in (corners[:, 1].min(), np.ceil(corners[:, 1].max())))
    for row in range(top, bottom):
        y = row + 0.5
        crosses = (corners[:, 1] <= y) != (ends[:, 1] <= y)
        start, end = corners[crosses], ends[crosses]
        places = np.sort(start[:, 0] + (y - start[:, 1]) / (end[:, 1] - start[:, 1]) * (end[:, 0] - start[:, 0]))
        firsts = np.clip(np.ceil(places - 0.5), 0, width).astype(int)  # the pixel whose centre comes next
        for left, right in zip(firsts[::2], firsts[1::2], strict=True):
            mask[row, left:right] = True
    if not mask.any():  # thinner than a pixel, and yet there
        if (corners.max(0) < -_SLACK).any() or (corners.min(0) > [width + _SLACK, height + _SLACK]).any():
            raise ValueError(f"polygon: expected corners in the picture of {width} x {height}, got {polygon!r:.80}")
        x, y = np.clip(corners.mean(0), 0, [width - 1, height - 1]).astype(int)
        mask[y, x] = True
    return mask
