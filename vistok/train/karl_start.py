"""A start for KARL on few images: slots that know where they are and look there first.

With random slots all budgets reconstruct alike for long: every slot sees the whole image, and none is worth more than
another. Here slots and grid share one position code in both nets, and queries equal keys, so that attention begins as a
soft neighbourhood.
"""

from typing import Any

import torch
from torch import Tensor

from vistok.layers.spatial_slots import position_codes, slot_cells

_AMPLITUDE = 0.5


@torch.no_grad()
def start_spatially(model: Any) -> None:
    """Set positions, slots, rows of errors and W_q = W_k of a new `Karl`.

    Raises: ValueError if it has more slots than grid cells.
    """
    side = model.encoder_positional_embedding.shape[1]
    order = slot_cells(*model.trained_grid)
    if model.max_latents > len(order):
        raise ValueError(f"karl: expected at most {len(order)} slots for a grid {model.trained_grid}, one per cell")
    # Constant rows, as the authors begin with, are all the same behind a LayerNorm; only neighbours should be alike.
    bins = torch.arange(len(model.epsilons))
    errors = position_codes(torch.stack([bins, torch.zeros_like(bins)], 1), model.rec_loss_embeddings.shape[1])
    model.rec_loss_embeddings.copy_(_AMPLITUDE * errors)
    # Slots sit where the position table is sampled for the grid that is trained.
    cells = order[: model.max_latents] * side // torch.tensor(model.trained_grid)
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    nets: list[tuple[Any, Tensor, Tensor]] = [
        (model.encoder, model.encoder_positional_embedding, model.latent_tokens),
        (model.decoder, model.decoder_positional_embedding, model.decoder_latent_tokens_timestep_embed),
    ]
    for net, table, slots in nets:
        width = slots.shape[1]
        table.copy_(_AMPLITUDE * position_codes(grid, width).T.unflatten(1, (side, side)))
        slots.copy_(_AMPLITUDE * position_codes(cells, width))
        for block in net.transformer:
            block.attn.in_proj_weight[width : 2 * width] = block.attn.in_proj_weight[:width]
