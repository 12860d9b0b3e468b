"""Lloyd's k-means (1982) from spread starts (k-means++, Arthur and Vassilvitskii 2007), for baselines of codebooks.

n vectors of width D, K clusters.
"""

import torch
from torch import Tensor

from vistok.ops import nearest_code


def k_means(vectors: Tensor, clusters: int, *, rounds: int = 10, seed: int = 0) -> Tensor:
    """The cluster of each of vectors [n, D]: [n] int64 in 0..K-1, after at most `rounds` rounds; the same for a seed.

    An empty cluster takes the vector that is farthest from its own centre. Raises: ValueError unless 1 <= K <= n.
    """
    if vectors.ndim != 2 or not 1 <= clusters <= len(vectors):
        raise ValueError(
            f"k_means: expected vectors [n, D] and 1..n clusters, got {list(vectors.shape)} and {clusters} clusters"
        )
    vectors = vectors.float()
    centres = vectors[_spread(vectors, clusters, torch.Generator().manual_seed(seed))]
    own = nearest_code(vectors, centres)
    for _ in range(rounds):
        sizes = torch.bincount(own, minlength=clusters)
        centres = torch.zeros_like(centres).index_add_(0, own, vectors) / sizes.clamp(min=1)[:, None]
        empty = (sizes == 0).nonzero()[:, 0]
        if len(empty):
            distance = (vectors - centres[own]).square().sum(1)
            centres[empty] = vectors[distance.topk(len(empty)).indices]
        before, own = own, nearest_code(vectors, centres)
        if torch.equal(before, own):
            break
    return own


def _spread(vectors: Tensor, count: int, draw: torch.Generator) -> Tensor:
    """Starts: each next one drawn with a chance that grows as the square of its distance to the nearest before it."""
    chosen = [int(torch.randint(len(vectors), (1,), generator=draw))]
    squares = vectors.square().sum(1)
    distance = torch.full_like(squares, torch.inf)
    for _ in range(count - 1):
        last = vectors[chosen[-1]]
        # Rounding may leave a chosen vector, or one equal to it, a little away from itself.
        distance = torch.minimum(distance, (squares - 2 * vectors @ last + last.square().sum()).clamp(min=0))
        distance[chosen[-1]] = 0
        reach = distance.double().cumsum(0)
        if float(reach[-1]) == 0:
            chosen.append(int(torch.randint(len(vectors), (1,), generator=draw)))
        else:
            mark = torch.rand(1, generator=draw, dtype=torch.float64) * reach[-1]
            chosen.append(min(int(torch.searchsorted(reach, mark, right=True)), len(vectors) - 1))
    return torch.tensor(chosen)
