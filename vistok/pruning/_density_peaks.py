"""DPC-kNN: clusters around points that are dense and far from denser ones. B items, N points, D width.

d_ij = |x_i - x_j| / sqrt(D); rho_i = exp(-mean of d_ij^2 over the k nearest points, i among them), k the number of
clusters; delta_i = the least d_ij over denser points j, the largest of all d for the densest. Centres are the k points
with the largest rho_i delta_i; every other point joins the nearest centre.
As in TokenClustering (arXiv:2204.08680) and SparseVLM (arXiv:2410.04417), but that of equally dense points the lower
place counts as the denser, where they add noise.
"""

import torch
from torch import Tensor

from vistok.ops.token_choice import finite_tokens, first_largest
from vistok.pruning._layer_cuts import highest


def density_peaks(points: Tensor, allowed: Tensor, clusters: Tensor) -> Tensor:
    """[B, N] int64: the place of the centre that each of points [B, N, D] belongs to, its own for a centre.

    -1 for points that are not allowed [B, N] or not finite. clusters: [B], how many, or as many as there are points.
    """
    allowed = allowed & finite_tokens(points)
    clusters = clusters.minimum(allowed.sum(1))
    distance = _distances(points, allowed)
    centres = highest(_peaks(distance, allowed, clusters), allowed, clusters)
    places = torch.arange(points.shape[1], device=points.device)
    options = centres[:, None].expand_as(distance)
    nearest = first_largest(-distance.flatten(0, 1), options.flatten(0, 1)).reshape(allowed.shape)
    return torch.where(centres, places, nearest).where(allowed & (clusters > 0)[:, None], -1)


def _distances(points: Tensor, allowed: Tensor) -> Tensor:
    """[B, N, N] float32, inf to points that are not allowed."""
    clean = points.float().masked_fill(~allowed[..., None], 0)
    # Differences, not |x|^2 + |y|^2 - 2 x y: near twins decide who is dense.
    distance: Tensor = torch.cdist(clean, clean, compute_mode="donot_use_mm_for_euclid_dist")
    distance = distance / max(points.shape[2], 1) ** 0.5
    return distance.masked_fill(~allowed[:, None], torch.inf)


def _peaks(distance: Tensor, allowed: Tensor, clusters: Tensor) -> Tensor:
    """rho delta, [B, N]."""
    places = torch.arange(distance.shape[1], device=distance.device)
    near = places < clusters[:, None, None]
    squares = distance.sort(dim=2).values.square().where(near, 0).sum(2)
    density = (-squares / clusters.clamp(min=1)[:, None]).exp()
    above, own = density[:, None], density[:, :, None]
    denser = ((above > own) | ((above == own) & (places < places[:, None]))) & allowed[:, None]
    farthest = distance.where(allowed[:, None] & allowed[:, :, None], 0).flatten(1).amax(1)[:, None, None]
    return density * torch.where(denser, distance, farthest).amin(2)
