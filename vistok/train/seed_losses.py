"""What SEED's two stages of training minimise (arXiv:2307.08041, section 3; SEED-2: arXiv:2310.01218).

Stage I, the causal Q-Former: v = norm(W_v q_last), t = norm(W_t h_CLS), y the own pair among those of all processes,
  L_itc = 1/2 [CE(v t_all^T / temp, y) + CE(t v_all^T / temp, y)], label smoothing .1.
Stage II, codes and reconstruction, u the codes of q brought back to its width:
  L = 5 L_vq + 2 mean(1 - cos(recon_s(u), q)) + .5 MSE(head(u), image embedding) + .5 MSE(head(u), text features),
the last one for SEED-1, in place of the image's. B items, Q queries, W width, P width of the projections.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(vision: Tensor, text: Tensor, temperature: Tensor, label_smoothing: float = 0.1) -> Tensor:
    """L_itc [] of unit vectors [B, P], row i of one belonging to row i of the other; temperature [].

    What a row is compared with is taken from all processes and passes no gradient, in a single process too, so that
    the number of processes does not change the loss. B may differ between processes.
    Raises: ValueError unless both are of one shape.
    """
    if vision.ndim != 2 or vision.shape != text.shape:
        raise ValueError(f"seed: expected two [B, P] of one shape, got {list(vision.shape)} and {list(text.shape)}")
    everything, offset = gather_rows(torch.stack([vision, text], 1).detach())
    own = torch.arange(offset, offset + len(vision), device=vision.device)
    to_text = vision @ everything[:, 1].T / temperature
    to_vision = text @ everything[:, 0].T / temperature
    losses = (F.cross_entropy(scores, own, label_smoothing=label_smoothing) for scores in (to_text, to_vision))
    return sum(losses, vision.new_zeros(())) / 2


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """rows [B, ...] of every process one after another, without gradient, and where this process's own begin."""
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows, 0
    own = torch.tensor([len(rows)], device=rows.device)
    counted = [torch.zeros_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(counted, own)
    counts = [int(count) for count in counted]
    # Every process must hand over a tensor of the same size.
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    parts = [part[:count] for part, count in zip(gathered, counts, strict=True)]
    return torch.cat(parts), sum(counts[: dist.get_rank()])


@dataclass(frozen=True)
class StageTwoWeights:
    """Weights of stage II's terms. SEED-2 has `image` and SEED-1 `text`; the other one is left away."""

    quantizer: float = 5.0
    reconstruction: float = 2.0
    image: float = 0.5
    text: float = 0.5

    def __post_init__(self) -> None:
        for name, weight in vars(self).items():
            if not weight >= 0:
                raise ValueError(f"seed: expected the weight of {name} to be >= 0, got {weight}")

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum [] float32 of the terms, by these names.

        Raises: ValueError naming them unless they are quantizer, reconstruction, and image, text or both.
        """
        weights = vars(self)
        if not {"quantizer", "reconstruction"} < terms.keys() <= weights.keys():
            raise ValueError(
                f"seed: expected the terms quantizer, reconstruction, and image, text or both, got {', '.join(terms)}"
            )
        return torch.stack([weights[name] * value.float() for name, value in terms.items()]).sum()


def reconstruction_loss(reconstruction: Tensor, queries: Tensor) -> Tensor:
    """L_recon_s: 1 - cosine of both [B, Q, W], mean over all tokens, [] float32; the target passes no gradient."""
    _same("reconstruction_loss", reconstruction, queries)
    return 1 - F.cosine_similarity(reconstruction.float(), queries.detach().float(), dim=-1).mean()


def embedding_loss(embedding: Tensor, target: Tensor) -> Tensor:
    """Mean squared error [] float32 between what the head makes and a frozen model's features, not normalised.

    SEED-2: both [B, E], CLIP's image embedding. SEED-1: both [B, 77, E], the features of a caption.
    """
    _same("embedding_loss", embedding, target)
    return F.mse_loss(embedding.float(), target.detach().float())


def _same(owner: str, left: Tensor, right: Tensor) -> None:
    # Broadcasting would turn a forgotten axis into a loss that trains on nothing.
    if left.shape != right.shape:
        raise ValueError(f"{owner}: expected two tensors of one shape, got {list(left.shape)} and {list(right.shape)}")
