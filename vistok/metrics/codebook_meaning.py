"""From Tokens to Thoughts: How LLMs and Humans Trade Compression for Meaning (Shani et al., arXiv:2505.17117).

A codebook as a set of concepts. Items X, all equally likely, fall into clusters C, those with the same code:
    L(X, C; beta) = I(X;C) + beta * distortion,
    I(X;C) = H(X) - H(X|C) = log2 n - sum_c (n_c / n) log2 n_c,
    distortion = sum_c (n_c / n) * mean squared distance of the cluster's vectors to their mean.
Vectors are scaled so that a single cluster has distortion 1: a share of the variance, whatever the units, and beta is
the bits that all of it is worth. A cluster's place is a function of its items, so I(X;C) = H(C): what its ids cost.
Beside the codes stands k-means with as many clusters on the same vectors. n items, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vistok.metrics.k_means import k_means
from vistok.metrics.partition_information import LabelInformation, label_information


@dataclass(frozen=True)
class Clustering:
    """clusters: that are not empty; complexity: I(X;C) in bits; distortion: share of the variance, 0..1; objective: L;
    labels: what C tells about each kind of label. Means where several places of tokens are taken together."""

    items: float
    clusters: float
    complexity: float
    distortion: float
    objective: float
    labels: dict[str, LabelInformation]


@dataclass(frozen=True)
class Comparison:
    """The tokenizer's own clusters, and as many of k-means."""

    codes: Clustering
    k_means: Clustering

    @property
    def break_even(self) -> float | None:
        """The beta at which both have the same objective; None where one is better at every beta above 0."""
        bits = self.codes.complexity - self.k_means.complexity
        room = self.k_means.distortion - self.codes.distortion
        return bits / room if room * bits > 0 else None


def compare_clusters(
    codes: Tensor,
    vectors: Tensor,
    labels: Mapping[str, Tensor] | None = None,
    groups: Tensor | None = None,
    *,
    beta: float = 1.0,
    draws: int = 20,
    seed: int = 0,
) -> Comparison:
    """codes [n] int64, vectors [n, D]; labels: kind -> [n] int64; groups [n] int64: items that share all their labels.

    Raises: ValueError for shapes that do not belong together, no items, or a beta below 0.
    """
    found = k_means(vectors, len(codes.unique()), seed=seed)
    return Comparison(
        *(
            clustering(partition, vectors, labels, groups, beta=beta, draws=draws, seed=seed)
            for partition in (codes, found)
        )
    )


def clustering(
    codes: Tensor,
    vectors: Tensor,
    labels: Mapping[str, Tensor] | None = None,
    groups: Tensor | None = None,
    *,
    beta: float = 1.0,
    draws: int = 20,
    seed: int = 0,
) -> Clustering:
    """The measures of one partition, as `compare_clusters` takes them."""
    if codes.ndim != 1 or vectors.ndim != 2 or len(vectors) != len(codes) or not len(codes) or beta < 0:
        raise ValueError(
            f"clustering: expected codes [n] and vectors [n, D] of the same n >= 1 and beta >= 0, got "
            f"{list(codes.shape)}, {list(vectors.shape)} and {beta}"
        )
    rate, loss = complexity(codes), distortion(codes, vectors)
    told = {
        name: label_information(codes, values, groups, draws=draws, seed=seed)
        for name, values in (labels or {}).items()
    }
    return Clustering(len(codes), len(codes.unique()), rate, loss, rate + beta * loss, told)


def complexity(codes: Tensor) -> float:
    """I(X;C) in bits of codes [n] int64."""
    sizes = codes.unique(return_counts=True)[1].double()
    items = sizes.sum()
    return float(items.log2() - (sizes / items * sizes.log2()).sum()) + 0.0


def distortion(codes: Tensor, vectors: Tensor) -> float:
    """Share of the variance of vectors [n, D] that is within clusters; 0 where all vectors are the same."""
    _, own = codes.unique(return_inverse=True)
    rows = vectors.double()
    rows = rows - rows.mean(0)
    sums = torch.zeros(int(own.max()) + 1, rows.shape[1], dtype=torch.float64).index_add_(0, own, rows)
    means = sums / torch.bincount(own)[:, None]
    total = float(rows.square().sum())
    return float((rows - means[own]).square().sum()) / total if total else 0.0


def mean_comparison(found: Sequence[Comparison]) -> Comparison:
    """The mean of every number over several places of tokens. Raises: ValueError if there are none."""
    if not found:
        raise ValueError("mean_comparison: expected at least one comparison, got none")
    return Comparison(_mean([each.codes for each in found]), _mean([each.k_means for each in found]))


def _mean(found: Sequence[Clustering]) -> Clustering:
    numbers = ("items", "clusters", "complexity", "distortion", "objective")
    parts = ("classes", "plug_in", "miller_madow", "shuffled", "adjusted")
    labels = {
        kind: LabelInformation(*(_average([getattr(each.labels[kind], part) for each in found]) for part in parts))
        for kind in found[0].labels
    }
    return Clustering(**{name: _average([getattr(each, name) for each in found]) for name in numbers}, labels=labels)


def _average(values: Sequence[float]) -> float:
    return sum(values) / len(values)
