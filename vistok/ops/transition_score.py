"""How strongly a module transforms each token: the token transition variation of TransPrune, arXiv:2507.20630.

score_i = w_i |out_i| / |in_i|, c_i = cos(in_i, out_i); in, out: of attention or FFN, after its norm and before the
residual. "code" (the authors'): w = softmax of 1 - c over all tokens of a sample; "paper": of 1 - |c| over its image
tokens. A layer scores attention + FFN; layers add up.
"""

import torch
from torch import Tensor

from vistok.ops.transition_stats import TransitionStats

VARIANTS = ("code", "paper")


def transition_score(stats: TransitionStats, tokens: Tensor | None = None, *, variant: str = "code") -> Tensor:
    """Scores [B, N] from the stats [B, N] of inputs (a) and outputs (b); gradients reach the stats.

    tokens: [B, N] bool, over which weights add up to 1: all that are no padding for "code", image tokens for "paper".
    Other tokens, and those whose input or output is a zero vector, score 0.

    Raises: ValueError for an unknown variant or a mask of another shape or dtype.
    """
    if variant not in VARIANTS:
        raise ValueError(f"transition_score: expected variant 'code' or 'paper', got {variant!r}")
    if tokens is not None and (tokens.shape != stats.dot.shape or tokens.dtype != torch.bool):
        raise ValueError(
            f"transition_score: expected tokens bool {list(stats.dot.shape)}, got {tokens.dtype} {list(tokens.shape)}"
        )
    moved = (stats.a_squared > 0) & (stats.b_squared > 0)
    # Roots of 1 where there is no direction: the root of 0 has no gradient.
    a, b = (squared.where(moved, 1).sqrt() for squared in stats[:2])
    cosine = (stats.dot / a / b).where(moved, 0)
    difference = 1 - (cosine.abs() if variant == "paper" else cosine)
    if tokens is not None:
        moved = moved & tokens
        difference = difference.masked_fill(~tokens, -torch.inf)
    return (difference.softmax(-1) * b / a).where(moved, 0)
