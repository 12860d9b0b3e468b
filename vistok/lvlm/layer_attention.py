"""Attention of a few rows of one decoder layer, from its own weights and without running it.

z = norm(h); q = W_q z, k = W_k z, both rotated; softmax over all keys that a row may see. B items, n tokens, S rows, H
heads, G key heads, Dh head width.
"""

import sys
from typing import Any

import torch
from torch import Tensor

from vistok.ops import attention_rows


class RowAttention:
    """Attention of a decoder layer at its input hidden [B, n, D], with cos and sin [1 or B, n, Dh]; valid [B, n] bool.

    flops: what all calls so far have cost, 2 per multiplication and addition.
    """

    def __init__(self, layer: Any, hidden: Tensor, rotation: tuple[Tensor, Tensor], valid: Tensor) -> None:
        self._layer = layer
        device = layer.self_attn.q_proj.weight.device
        self._normed: Tensor = layer.input_layernorm(hidden.detach().to(device))
        self._rotation = tuple(part.to(device).expand(len(hidden), -1, -1) for part in rotation)
        self._valid = valid.to(device)
        self.flops = 0

    @torch.no_grad()
    def __call__(self, rows: Tensor) -> Tensor:
        """rows [B, n] bool -> [B, n] float32, mean over heads and rows."""
        wanted = rows.to(self._valid.device) & self._valid
        first = wanted.to(torch.int8).argmax(1)
        last = wanted.shape[1] - 1 - wanted.flip(1).to(torch.int8).argmax(1)
        # attention_rows sees rows that follow one another: a span from the first to the last, the others masked.
        width = int(torch.where(wanted.any(1), last - first + 1, 1).max())
        places = first[:, None] + torch.arange(width, device=first.device)
        q_mask = wanted.gather(1, places.clamp(max=wanted.shape[1] - 1)) & (places < wanted.shape[1])
        places = places.clamp(max=wanted.shape[1] - 1)
        queries, keys = self._project("q", places), self.keys()
        self.flops += 2 * queries.numel() * self._normed.shape[2] + 2 * queries.numel() * keys.shape[2]
        scale = self._layer.self_attn.scaling
        mean = attention_rows(queries, keys, scale=scale, q_mask=q_mask, k_mask=self._valid, causal_offset=first).mean
        return mean.float().to(rows.device)

    @torch.no_grad()
    def keys(self) -> Tensor:
        """[B, G, n, Dh], rotated."""
        keys = self._project("k", None)
        self.flops += 2 * keys.numel() * self._normed.shape[2]
        return keys

    def _project(self, name: str, places: Tensor | None) -> Tensor:
        """Rotated queries or keys [B, heads, n or S, Dh] of all tokens or of the places [B, S]."""
        attention = self._layer.self_attn
        values, (cos, sin) = self._normed, self._rotation
        if places is not None:
            values, cos, sin = (_rows(part, places) for part in (values, cos, sin))
        heads = getattr(attention, f"{name}_proj")(values).unflatten(2, (-1, attention.head_dim))
        norm = getattr(attention, f"{name}_norm", None)
        heads = (heads if norm is None else norm(heads)).transpose(1, 2)
        rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
        rotated: Tensor = rotate(heads, heads, cos, sin)[0]
        return rotated


def _rows(values: Tensor, places: Tensor) -> Tensor:
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))
