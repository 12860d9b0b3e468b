"""The parts of an attention module by themselves: queries, keys, values and output, from its current weights.

timm's modules have one fused projection, torch's a plain matrix; both hold q, k and v in this order. Everything is
looked up at each call, because tuners such as LoRA put modules of their own in the place of these.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class AttentionWeights(Protocol):
    """H heads of width d over tokens of width D."""

    scale: float

    @property
    def foldable(self) -> bool:
        """Whether scores are linear in the tokens, so that keys need not be made."""
        ...

    def query(self, normed: Tensor) -> Tensor:
        """[b, T, D] -> [b, H, T, d]."""
        ...

    def key_value(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """The fused projection [B, N, 3 H d] of tokens -> keys and values [B, H, N, d]."""
        ...

    def folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Weights of keys and of values [H, d, D], and bias of values [H d]."""
        ...

    def output(self, heads: Tensor, normed: Tensor) -> Tensor:
        """Heads side by side [B, T, H d] of queries that were [b, T, D] -> [B, T, D]."""
        ...


class TimmAttention:
    """timm's `Attention` (1.0): fused `qkv`, norms of queries and keys, norm and gate of the output."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.heads: int = module.num_heads
        self.width: int = module.num_heads * module.head_dim
        self.scale: float = module.scale

    @property
    def foldable(self) -> bool:
        """See `AttentionWeights`."""
        norms = (self.module.q_norm, self.module.k_norm)
        return type(self.module.qkv) is nn.Linear and all(isinstance(norm, nn.Identity) for norm in norms)

    def query(self, normed: Tensor) -> Tensor:
        """See `AttentionWeights`."""
        qkv = self.module.qkv
        if type(qkv) is nn.Linear:
            bias = None if qkv.bias is None else qkv.bias[: self.width]
            q = nn.functional.linear(normed, qkv.weight[: self.width], bias)
        else:
            q = qkv(normed)[..., : self.width]
        normal: Tensor = self.module.q_norm(_split(q, self.heads))
        return normal

    def key_value(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionWeights`."""
        _, k, v = fused.chunk(3, -1)
        return self.module.k_norm(_split(k, self.heads)), _split(v, self.heads)

    def folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `AttentionWeights`."""
        return _thirds(self.module.qkv.weight, self.module.qkv.bias, self.heads)

    def output(self, heads: Tensor, normed: Tensor) -> Tensor:
        """See `AttentionWeights`."""
        heads = getattr(self.module, "norm", nn.Identity())(heads)
        gate = getattr(self.module, "gate", None)
        if gate is not None:
            heads = heads * gate(normed).sigmoid()
        out: Tensor = self.module.proj(heads)
        return out


class TorchAttention:
    """`nn.MultiheadAttention` with one width for all: `in_proj_weight`, `out_proj`."""

    foldable = True

    def __init__(self, module: nn.MultiheadAttention) -> None:
        self.module = module
        self.heads = module.num_heads
        self.scale = module.head_dim**-0.5

    def project(self, normed: Tensor) -> Tensor:
        """Tokens [B, N, D] -> the fused projection [B, N, 3 D], which this module never makes where a hook can see."""
        return nn.functional.linear(normed, self.module.in_proj_weight, self.module.in_proj_bias)

    def query(self, normed: Tensor) -> Tensor:
        """See `AttentionWeights`."""
        width = self.module.embed_dim
        bias = None if self.module.in_proj_bias is None else self.module.in_proj_bias[:width]
        return _split(nn.functional.linear(normed, self.module.in_proj_weight[:width], bias), self.heads)

    def key_value(self, fused: Tensor) -> tuple[Tensor, Tensor]:
        """See `AttentionWeights`."""
        _, k, v = fused.chunk(3, -1)
        return _split(k, self.heads), _split(v, self.heads)

    def folded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `AttentionWeights`."""
        return _thirds(self.module.in_proj_weight, self.module.in_proj_bias, self.heads)

    def output(self, heads: Tensor, normed: Tensor) -> Tensor:
        """See `AttentionWeights`."""
        out: Tensor = self.module.out_proj(heads)
        return out


def _split(x: Tensor, heads: int) -> Tensor:
    """[B, N, H d] -> [B, H, N, d]."""
    split: Tensor = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return split


def _thirds(weight: Tensor, bias: Tensor | None, heads: int) -> tuple[Tensor, Tensor, Tensor | None]:
    _, key, value = torch.chunk(weight, 3)
    return key.unflatten(0, (heads, -1)), value.unflatten(0, (heads, -1)), None if bias is None else bias.chunk(3)[2]
