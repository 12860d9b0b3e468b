"""Gradients through a quantizer: forward exactly the codes, backward to the vectors. N vectors, D width.

Rotation trick (arXiv:2410.06424, section 4.2): u = z/|z|, q = e/|e|, w = (u+q)/|u+q|, all constant in backward;
out = |e|/|z| (z - 2 w (w.z) + 2 q (u.z)). Differs: forward is e to the bit, and where |z| is 0 or below 1e-6 |e|
(the rotation has no direction there, its scale no bound) the gradient is that of the straight-through estimator.
"""

import torch
from torch import Tensor

_SMALLEST_RATIO = 1e-6


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """codes [..., D] with the gradient passed on to z [..., D] unchanged.

    Written as codes + (z - z), because z + (codes - z) rounds: a large z would swallow the code.
    """
    return codes.detach() + (z - z.detach())


def rotate(z: Tensor, codes: Tensor) -> Tensor:
    """codes [..., D], the gradient rotated from the code's direction to that of z [..., D] and scaled by |e|/|z|."""
    with torch.no_grad():
        z_norm, code_norm = z.norm(dim=-1, keepdim=True), codes.norm(dim=-1, keepdim=True)
        usable = (z_norm > 0) & (z_norm >= _SMALLEST_RATIO * code_norm)
        u, q = z / z_norm.where(usable, 1.0), codes / code_norm.where(code_norm > 0, 1.0)
        w = torch.nn.functional.normalize(u + q, dim=-1)
        ratio = code_norm / z_norm.where(usable, 1.0)
    along_w, along_u = (w * z).sum(-1, keepdim=True), (u * z).sum(-1, keepdim=True)
    rotated = ratio * (z - 2 * w * along_w + 2 * q * along_u)
    return straight_through(rotated.where(usable, z), codes)


GRADIENTS = {"straight_through": straight_through, "rotation": rotate}


def unit_vectors(x: Tensor) -> Tensor:
    """x / |x| over the last axis; a zero vector stays zero and hands its gradient on unscaled."""
    norm: Tensor = x.norm(dim=-1, keepdim=True)
    return x / norm.where(norm > 0, 1.0)
