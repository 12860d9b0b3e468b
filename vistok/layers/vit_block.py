"""Pre-norm transformer blocks with the key names of timm's VisionTransformer (arXiv:2010.11929, equations 2 and 3).

x += MHA(LN(x));  x += W2 gelu(W1 LN(x)).  Keys: norm1, attn.qkv [3W, W], attn.proj, norm2, mlp.fc1 [4W, W], mlp.fc2.
`layers.transformer` has the same net under the names of torch.nn.MultiheadAttention. B items, S tokens, W width.
"""

import torch
from torch import Tensor, nn

from vistok.layers.transformer import plain_attention


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        # As in `layers.transformer.Attention`: on CPUs the backward pass of the fused kernel is the slower one.
        plain = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu"
        attend = plain_attention if plain else nn.functional.scaled_dot_product_attention
        out: Tensor = self.proj(attend(q, k, v).transpose(1, 2).flatten(2))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class VitBlock(nn.Module):
    """Attention, then a multilayer perceptron, each behind a LayerNorm and beside a residual path."""

    def __init__(self, width: int, heads: int, eps: float = 1e-6) -> None:
        """Raises: ValueError unless the heads divide the width."""
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"vit_block: expected heads that divide width={width}, got heads={heads}")
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = _Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, S, W] -> the same shape."""
        x = x + self.attn(self.norm1(x))
        mixed: Tensor = x + self.mlp(self.norm2(x))
        return mixed
