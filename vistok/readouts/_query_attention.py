"""Attention of a few query tokens over the tokens of a block, from whatever was kept of these.

B images, H heads, T queries, N tokens, D width of the block, d width of a head. Queries may come once (b = 1) for the
whole batch (b = B).
"""

from typing import Any

import torch
from torch import Tensor


class _KeptProduct(torch.autograd.Function):
    """a @ kept where `kept` needs no gradient and has fewer bits: backward sees those bits, never the wide copy."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, kept: Tensor) -> Tensor:
        ctx.save_for_backward(kept)
        return a @ kept.to(a.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (kept,) = ctx.saved_tensors
        return grads[0] @ kept.to(grads[0].dtype).transpose(-1, -2), None


def _product(a: Tensor, kept: Tensor) -> Tensor:
    if a.dtype == kept.dtype:
        return a @ kept
    if kept.requires_grad:
        return a @ kept.to(a.dtype)
    product: Tensor = _KeptProduct.apply(a, kept)
    return product


def folded_attention(
    q: Tensor, tokens: Tensor, key_weight: Tensor, value_weight: Tensor, value_bias: Tensor | None, scale: float
) -> Tensor:
    """q [b, H, T, d], tokens [B, N, D], key_weight, value_weight [H, d, D] -> heads side by side [B, T, H d].

    softmax(q (W_k x + b_k)^T) W_v x = softmax((q W_k) x^T) x W_v^T: neither keys nor values are made, and b_k adds the
    same to all scores of a query, so that the softmax does not see it.
    """
    heads, (rows, _, count, _) = key_weight.shape[0], q.shape
    # Weights are the batch of the small products: a batch of images would copy them once per image, and keep that.
    u = torch.bmm((q * scale).transpose(0, 1).flatten(1, 2), key_weight)
    u = u.unflatten(1, (rows, count)).transpose(0, 1).flatten(1, 2).expand(tokens.shape[0], -1, -1)
    context = _product(_product(u, tokens.transpose(1, 2)).softmax(-1), tokens)
    per_head = context.unflatten(1, (heads, count)).transpose(0, 1).flatten(1, 2)
    out = torch.bmm(per_head, value_weight.transpose(1, 2)).unflatten(1, (-1, count))
    side_by_side: Tensor = out.permute(1, 2, 0, 3).flatten(2)
    return side_by_side if value_bias is None else side_by_side + value_bias


def plain_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """q [b, H, T, d], k, v [B, H, N, d] -> heads side by side [B, T, H d]."""
    scores = _product((q * scale).expand(k.shape[0], -1, -1, -1), k.transpose(-1, -2))
    heads: Tensor = _product(scores.softmax(-1), v).transpose(1, 2).flatten(2)
    return heads
