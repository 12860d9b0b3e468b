"""Pre-norm transformer blocks with one projection for q, k and v, as timm and DINOv2 publish them (arXiv:2010.11929).

x += attn(LN(x));  x += ffn(LN(x)). Keys: norm1, attn.qkv [3W, W], attn.proj, norm2, mlp.{fc1,fc2} (GELU) or
mlp.{w12,w3} (SwiGLU, arXiv:2002.05202). `layers.transformer` has the same net under the names of
torch.nn.MultiheadAttention. B items, S tokens, W width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vistok.layers.key_value_cache import KeyValueCache, LayerCache, causal_mask
from vistok.layers.transformer import plain_attention

HEAD_WIDTH = 64
EPS = 1e-6


class Attention(nn.Module):
    """Multi-head attention of a sequence with itself, or of new tokens with all that a cache has seen."""

    def __init__(self, width: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x [B, S, W] -> [B, S, W]; with a cache, x continues what the cache holds and is added to it."""
        batch, length, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.append(k, v)
        # A single new token sees everything, so it needs no mask.
        mask = causal_mask(length, k.shape[2], x.device) if self.causal and length > 1 else None
        # On CPUs the fused kernel is faster forward, and its backward takes three times as long as the plain products.
        plain = torch.is_grad_enabled() and q.requires_grad and q.device.type == "cpu"
        attend = plain_attention if plain else nn.functional.scaled_dot_product_attention
        out: Tensor = self.proj(attend(q, k, v, mask).transpose(1, 2).reshape(batch, length, width))
        return out


class GeluMlp(nn.Module):
    """W -> 4W -> exact GELU -> W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> the same shape."""
        out: Tensor = self.fc2(nn.functional.gelu(self.fc1(x)))
        return out


class SwiGlu(nn.Module):
    """w3(silu(a) b) with a, b = w12(x); inside 2/3 of `ratio` times as wide, in multiples of 8."""

    def __init__(self, width: int, ratio: float = 4) -> None:
        super().__init__()
        inner = -(-int(width * ratio * 2 / 3) // 8) * 8
        self.w12 = nn.Linear(width, 2 * inner)
        self.w3 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """[..., W] -> the same shape."""
        gate, value = self.w12(x).chunk(2, dim=-1)
        out: Tensor = self.w3(nn.functional.silu(gate) * value)
        return out


FEED_FORWARD: dict[str, type[GeluMlp] | type[SwiGlu]] = {"mlp": GeluMlp, "swiglu": SwiGlu, "swiglufused": SwiGlu}


class VitBlock(nn.Module):
    """Attention, then a feed-forward net, each behind a LayerNorm and beside a residual path."""

    def __init__(self, width: int, heads: int, ffn_layer: str = "mlp", *, causal: bool = False) -> None:
        """Raises: ValueError unless the heads divide the width."""
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"vit_block: expected heads that divide width={width}, got heads={heads}")
        self.norm1 = nn.LayerNorm(width, eps=EPS)
        self.attn = Attention(width, heads, causal)
        self.norm2 = nn.LayerNorm(width, eps=EPS)
        self.mlp = FEED_FORWARD[ffn_layer](width)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x [B, S, W] -> [B, S, W]."""
        x = x + self.attn(self.norm1(x), cache)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class BlockStack(nn.ModuleList):
    """Blocks with heads 64 wide in a row, in one chunk: their keys begin with "0."."""

    def __init__(self, width: int, depth: int, ffn_layer: str = "mlp", *, causal: bool = False) -> None:
        """Raises: ValueError unless the width is a multiple of 64, depth >= 1 and ffn_layer is known."""
        if width < HEAD_WIDTH or width % HEAD_WIDTH or depth < 1 or ffn_layer not in FEED_FORWARD:
            raise ValueError(
                f"transformer: expected a width in multiples of {HEAD_WIDTH}, depth >= 1 and ffn_layer one of "
                f"{', '.join(FEED_FORWARD)}, got {width}, {depth} and {ffn_layer!r}"
            )
        super().__init__(
            [nn.ModuleList(VitBlock(width, width // HEAD_WIDTH, ffn_layer, causal=causal) for _ in range(depth))]
        )

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self._blocks)

    def forward(self, x: Tensor, cache: KeyValueCache | None = None) -> Tensor:
        """x [B, S, W] -> [B, S, W]; with a cache, x continues what it holds."""
        caches: Sequence[LayerCache | None] = [None] * self.depth if cache is None else cache.layers
        for block, layer in zip(self._blocks, caches, strict=True):
            x = block(x, layer)
        return x

    @property
    def _blocks(self) -> nn.ModuleList:
        blocks = self[0]
        assert isinstance(blocks, nn.ModuleList)
        return blocks
