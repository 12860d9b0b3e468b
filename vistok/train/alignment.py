"""The alignment loss of VA-VAE (arXiv:2501.01423, section 3.2): latents laid out as a frozen teacher's features.

z' = W z.  cosine = mean relu(1 - m_c - cos(z'_i, f_i));  relations = mean relu(|cos(z'_i, z'_j) - cos(f_i, f_j)| - m_r)
over all pairs of an image. Both are weighed against the reconstruction at the encoder's last layer.
B images, N places, C latent channels, D width of the teacher.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from vistok.train.masked_features import on_grid

_MOST = 1e8


class Alignment(NamedTuple):
    """cosine, relations: []."""

    cosine: Tensor
    relations: Tensor


class AlignmentLoss(nn.Module):
    """Projects latents to the teacher's width and compares directions, place by place and pair by pair."""

    def __init__(
        self, channels: int, teacher_dim: int, *, cosine_margin: float = 0.5, relation_margin: float = 0.25
    ) -> None:
        super().__init__()
        self.project = nn.Linear(channels, teacher_dim, bias=False)
        self.cosine_margin, self.relation_margin = cosine_margin, relation_margin

    def forward(self, latents: Tensor, features: Tensor, grid: tuple[int, int]) -> Alignment:
        """latents [B, N, C] of a grid (gh, gw), features [B, D, h, w] of a teacher.

        Raises: ValueError unless N = gh*gw and D is the teacher's width.
        """
        if latents.shape[1] != grid[0] * grid[1] or features.shape[1] != self.project.out_features:
            raise ValueError(
                f"alignment: expected latents [B, {grid[0] * grid[1]}, C] and features "
                f"[B, {self.project.out_features}, h, w], got {list(latents.shape)} and {list(features.shape)}"
            )
        z = functional.normalize(self.project(latents).float(), dim=-1)
        f = functional.normalize(on_grid(features, grid), dim=-1)
        cosine = functional.relu(1 - self.cosine_margin - (z * f).sum(-1)).mean()
        apart = (z @ z.transpose(1, 2) - f @ f.transpose(1, 2)).abs()
        return Alignment(cosine, functional.relu(apart - self.relation_margin).mean())


def adaptive_weight(reconstruction: Tensor, alignment: Tensor, last_layer: Tensor, strength: float = 0.1) -> Tensor:
    """strength |grad reconstruction| / (|grad alignment| + 1e-4) at the encoder's last layer: [], no gradient."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)
    (of_alignment,) = torch.autograd.grad(alignment, last_layer, retain_graph=True)
    ratio: Tensor = of_reconstruction.norm() / (of_alignment.norm() + 1e-4)
    return strength * ratio.clamp(0.0, _MOST).detach()
