"""How much a partition of items tells about their labels, in bits, and how much of that is chance.

I(C;Y) = H(C) + H(Y) - H(C,Y) from counts (plug-in) is too large, the more so the more clusters there are to an item.
Three corrections stand beside it: Miller and Madow's (1955), H + (m - 1) / (2 n ln 2) for m values seen among n items,
which is good while items are many to a cluster and falls below 0 where they are not; the same measure with labels
shuffled, whole groups of items at a time, since patches of one thing share their label and are no independent draws;
and adjusted mutual information (Vinh, Epps and Bailey, Journal of Machine Learning Research 11, 2010), (I - E) /
((H(C) + H(Y)) / 2 - E) with E the mean over all partitions of the same sizes. C clusters, K classes, n items.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelInformation:
    """Of one kind of label, in bits: classes = H(Y); plug_in, miller_madow: estimates of I(C;Y); shuffled: the mean of
    the plug-in estimate with labels shuffled; adjusted: AMI, 0 by chance and 1 for the same partition."""

    classes: float
    plug_in: float
    miller_madow: float
    shuffled: float
    adjusted: float

    @property
    def above_shuffled(self) -> float:
        """What is left of the plug-in estimate without what shuffled labels give."""
        return self.plug_in - self.shuffled


def label_information(
    codes: Tensor, labels: Tensor, groups: Tensor | None = None, *, draws: int = 20, seed: int = 0
) -> LabelInformation:
    """codes, labels [n] int64; groups [n] int64: items with one label that are shuffled together, None: each alone.

    Raises: ValueError for shapes that do not belong together, no items, or a group with two labels.
    """
    if codes.ndim != 1 or labels.shape != codes.shape or not len(codes) or draws < 1:
        raise ValueError(
            f"label information: expected codes and labels [n] of the same n >= 1 and draws >= 1, got "
            f"{list(codes.shape)}, {list(labels.shape)} and {draws}"
        )
    groups = torch.arange(len(codes)) if groups is None else groups
    names, group = groups.unique(return_inverse=True)
    of_group = torch.empty(len(names), dtype=labels.dtype).scatter_(0, group, labels)
    if not torch.equal(of_group[group], labels):
        raise ValueError("label information: expected one label for all items of a group, got several")
    table = contingency(codes, labels)
    draw = torch.Generator().manual_seed(seed)
    chance = [
        mutual_information(contingency(codes, of_group[torch.randperm(len(names), generator=draw)][group]))
        for _ in range(draws)
    ]
    return LabelInformation(
        entropy(table.sum(0)),
        mutual_information(table),
        miller_madow(table),
        sum(chance) / draws,
        adjusted_mutual_information(table),
    )


def contingency(codes: Tensor, labels: Tensor) -> Tensor:
    """How often each pair was seen: [C, K] int64 over the values there are."""
    first, row = codes.unique(return_inverse=True)
    second, column = labels.unique(return_inverse=True)
    pairs = torch.bincount(row * len(second) + column, minlength=len(first) * len(second))
    return pairs.reshape(len(first), len(second))


def entropy(counts: Tensor) -> float:
    """Plug-in entropy of counts [...] in bits."""
    shares = counts[counts > 0].double() / counts.sum()
    return float(-(shares * shares.log2()).sum()) + 0.0


def mutual_information(table: Tensor) -> float:
    """Plug-in estimate from counts [C, K] in bits."""
    return max(0.0, entropy(table.sum(1)) + entropy(table.sum(0)) - entropy(table))


def miller_madow(table: Tensor) -> float:
    """The estimate with each of the three entropies corrected, from counts [C, K] in bits; may be below 0."""
    seen = [int((counts > 0).sum()) for counts in (table.sum(1), table.sum(0), table)]
    correction = (seen[0] - 1) + (seen[1] - 1) - (seen[2] - 1)
    return mutual_information(table) + correction / (2 * int(table.sum()) * math.log(2))


def expected_mutual_information(table: Tensor) -> float:
    """The mean plug-in estimate over all partitions with the sizes of the rows and columns of table [C, K], in bits."""
    items = int(table.sum())
    factorial = torch.lgamma(torch.arange(items + 2, dtype=torch.float64).clamp(min=1))  # [i] = ln (i - 1)!
    total = 0.0
    # Clusters of one size contribute alike, and there are few sizes.
    for size, clusters in zip(*(part.tolist() for part in table.sum(1).unique(return_counts=True)), strict=True):
        for other, classes in zip(*(part.tolist() for part in table.sum(0).unique(return_counts=True)), strict=True):
            both = torch.arange(max(1, size + other - items), min(size, other) + 1)
            ways = (
                factorial[size + 1] + factorial[other + 1] + factorial[items - size + 1] + factorial[items - other + 1]
            ) - factorial[items + 1]
            ways = ways - factorial[both + 1] - factorial[size - both + 1] - factorial[other - both + 1]
            ways = ways - factorial[items - size - other + both + 1]
            gain = both.double() / items * (items * both.double() / (size * other)).log2()
            total += clusters * classes * float((gain * ways.exp()).sum())
    return total


def adjusted_mutual_information(table: Tensor) -> float:
    """AMI of counts [C, K], with the mean of both entropies as the largest value; 1 where both are trivial."""
    expected = expected_mutual_information(table)
    largest = (entropy(table.sum(1)) + entropy(table.sum(0))) / 2
    room = largest - expected
    if abs(room) < 1e-12:
        return 1.0
    return (mutual_information(table) - expected) / room
