"""Linear heads that ask of every visual token what its patch shows; they help the tower to learn and then go."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vistok.data.scenes.patch_truth import CLASS_SIZES, COUNTS, FLAGS, NUMBERS, PAIRS, PatchTruth

_PATTERN_SPREAD = 0.1  # of log norms
# 1/p and 1/p^2 of the plastic number p: steps of the R2 sequence, the additive recurrence of least discrepancy known.
_STRIDES = (0.7548776662466927, 0.5698402909980532)


class DenseHeads(nn.Module):
    """Tokens [B, N, D] to what `PatchTruth` holds per patch."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = [*CLASS_SIZES.values(), len(FLAGS), NUMBERS]
        self.linear = nn.Linear(width, sum(self.sizes))

    def loss(self, tokens: Tensor, truth: PatchTruth) -> Tensor:
        """Sum of cross entropies, flags and numbers, [] float32; attributes count only where a thing shows."""
        *classes, flags, numbers = self.linear(tokens).float().split(self.sizes, dim=-1)
        total = tokens.new_zeros((), dtype=torch.float32)
        for logits, (name, target) in zip(classes, truth.classes.items(), strict=True):
            everywhere = name in ("shape", "color")
            chosen = torch.ones_like(truth.shown) if everywhere else truth.shown
            total = total + F.cross_entropy(logits[chosen], target[chosen])
        wanted = torch.stack([truth.flags[name] for name in FLAGS], dim=-1)
        total = total + F.binary_cross_entropy_with_logits(flags, wanted)
        return total + F.smooth_l1_loss(numbers[truth.shown], truth.numbers[truth.shown], beta=0.1)


class GlobalHead(nn.Module):
    """The class token [B, D] to what is in the whole picture, so that attention of that token means something."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, PAIRS + COUNTS)

    def loss(self, token: Tensor, truth: PatchTruth) -> Tensor:
        """Binary cross entropy of the pairs and cross entropy of the count, [] float32."""
        pairs, count = self.linear(token).float().split((PAIRS, COUNTS), dim=-1)
        present = F.binary_cross_entropy_with_logits(pairs, truth.pairs)
        return 4 * present + 0.5 * F.cross_entropy(count, truth.count)


def norm_error(tokens: Tensor) -> Tensor:
    """How far log norms of tokens [B, N, D] of a square grid are from a fixed pattern of the places, [] float32.

    Left alone, a tower gives things and background different norms, and keeping the largest or the smallest becomes an
    oracle that no real model offers. So norms are taught to say nothing but the place: 0 if they do, 1 if all are one.
    The pattern is spread evenly, so that its largest and its smallest values lie everywhere in the picture.
    """
    norms = tokens.float().norm(dim=-1).log()
    place = torch.arange(norms.shape[1])
    side = math.isqrt(len(place))
    pattern = (place // side * _STRIDES[0] + place % side * _STRIDES[1]) % 1
    wanted = _PATTERN_SPREAD * (pattern - pattern.mean()) / pattern.std()
    error: Tensor = (norms - norms.mean(dim=1, keepdim=True) - wanted).square().mean() / _PATTERN_SPREAD**2
    return error
