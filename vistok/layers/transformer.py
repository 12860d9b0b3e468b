"""Pre-norm transformer blocks (arXiv:2002.04745) with the weight layout that 1-D image tokenizers publish.

x += MHA(LN(x));  x += W2 gelu(W1 LN(x)).  Keys as in torch.nn.MultiheadAttention: in_proj [3W, W], out_proj [W, W].
B items, S tokens, W width.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention of a sequence with itself."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, S, W], mask [B, 1, S or 1, S] bool (True = may be seen) or None -> [B, S, W]."""
        batch, length, width = x.shape
        projected = nn.functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        q, k, v = projected.reshape(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        # On CPUs the fused kernel is faster forward, and its backward takes three times as long as the plain products.
        plain = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu"
        attend = plain_attention if plain else nn.functional.scaled_dot_product_attention
        seen = attend(q, k, v, mask)
        out: Tensor = self.out_proj(seen.transpose(1, 2).reshape(batch, length, width))
        return out


def plain_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(d)) v over [B, heads, S, d]; mask as for `Attention`, every query has a key.

    dropout: share of the weights that are dropped, as in torch's own function.
    """
    scores: Tensor = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(-1)
    return (nn.functional.dropout(weights, dropout) if dropout else weights) @ v


class Mlp(nn.Module):
    """W -> 4W -> exact GELU -> W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> the same shape."""
        out: Tensor = self.c_proj(nn.functional.gelu(self.c_fc(x)))
        return out


class Block(nn.Module):
    """Attention, then a multilayer perceptron, each behind a LayerNorm and beside a residual path."""

    def __init__(self, width: int, heads: int) -> None:
        """Raises: ValueError unless the heads divide the width."""
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"transformer: expected heads that divide width={width}, got heads={heads}")
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, S, W], mask as for `Attention` -> [B, S, W]."""
        x = x + self.attn(self.ln_1(x), mask)
        mixed: Tensor = x + self.mlp(self.ln_2(x))
        return mixed


def run_blocks(blocks: Iterable[Any], x: Tensor, valid: Tensor | None = None) -> Tensor:
    """x [B, S, W] through all blocks; tokens where `valid` [B, S] is False are seen by none.

    What comes out at such a token means nothing: leave it away, it has touched no other.
    """
    mask = None if valid is None else valid[:, None, None, :]
    for block in blocks:
        x = block(x, mask)
    return x


def init_like_vit(module: nn.Module) -> None:
    """Truncated normal weights of std .02 and zero biases in every linear and convolutional layer below `module`."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
