"""Joint diffusion over discrete ids and continuous vectors of the same tokens (CCDD, arXiv:2510.03206).

Forward, each part at its own time: q(x_t, z_s | x, z) = q(x_t | x) q(z_s | z); an id is masked with chance t, and
z_s = (1 - s) z + s eps (a rectified flow, arXiv:2209.03003, where the paper has an SDE). One net sees both and has two
heads, p(id | x_t, z_s, t, s) and the velocity z - eps:
L = w_d E[1/t sum_masked -log p(id)] / N + w_c E|v - (z - eps)|^2. Without one part's input and loss the same net is
the discrete or the continuous model alone.
B items, N tokens, Q digits of an id, C channels of z, P prompt vectors, W width.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.layers.digit_codes import DigitEmbedding, digit_losses, draw_digits
from vistok.layers.rectified_flow import TimeEmbedding
from vistok.layers.transformer import Block, run_blocks


class Noised(NamedTuple):
    """digits [B, N, Q] with -1 where masked, z [B, N, C] noised, and the noise eps in it."""

    digits: Tensor
    z: Tensor
    eps: Tensor


class JointLoss(NamedTuple):
    """discrete: nats a token, an upper bound of -log p(x | z_s) in expectation; continuous: mean squared error."""

    discrete: Tensor
    continuous: Tensor


def noised(digits: Tensor, z: Tensor, t: Tensor, s: Tensor, generator: torch.Generator | None = None) -> Noised:
    """The forward process: digits [B, N, Q] at times t [B], z [B, N, C] at times s [B]; 0 = data, 1 = noise."""
    hidden = torch.rand(digits.shape[:2], generator=generator) < t[:, None]
    eps = torch.randn(z.shape, generator=generator)
    level = s[:, None, None]
    return Noised(digits.masked_fill(hidden[..., None], -1), (1 - level) * z + level * eps, eps)


class JointDenoiser(nn.Module):
    """A transformer over prompt and tokens, which sees ids and vectors as one sum per token, and predicts both."""

    def __init__(
        self, sizes: Sequence[int], channels: int, tokens: int, *, width: int = 96, layers: int = 4, heads: int = 4
    ) -> None:
        """sizes: alphabets of the Q digits; tokens: N. Raises: ValueError for sizes or heads that do not fit."""
        super().__init__()
        self.sizes, self.channels = tuple(sizes), channels
        self.embed_ids = DigitEmbedding(sizes, width)
        self.masked = nn.Parameter(0.02 * torch.randn(width))
        self.embed_z = nn.Linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.time_ids, self.time_z = TimeEmbedding(width), TimeEmbedding(width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.id_head = nn.Linear(width, sum(sizes))
        self.z_head = nn.Linear(width, channels)

    def forward(self, prompt: Tensor, digits: Tensor, z: Tensor, t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        """prompt [B, P, W], digits [B, N, Q] (-1 = masked), z [B, N, C], times t and s [B].

        Returns logits [B, N, sum(sizes)] and the velocity [B, N, C].
        """
        ids = self.embed_ids(digits) + self.masked * (digits[..., :1] < 0)
        times = self.time_ids(t) + self.time_z(s)
        x = ids + self.embed_z(z) + self.position + times[:, None]
        hidden = self.norm(run_blocks(self.blocks, torch.cat([prompt, x], 1))[:, prompt.shape[1] :])
        return self.id_head(hidden), self.z_head(hidden)

    def loss(self, prompt: Tensor, digits: Tensor, z: Tensor, t: Tensor, s: Tensor, seen: Noised) -> JointLoss:
        """Both terms for clean digits and z, of which `seen` is what `noised` made at t and s."""
        logits, velocity = self(prompt, seen.digits, seen.z, t, s)
        hidden = seen.digits[..., 0] < 0
        nats = digit_losses(logits, digits, self.sizes).where(hidden, 0.0)
        return JointLoss((nats / t[:, None]).mean(), (velocity - (z - seen.eps)).square().mean())

    @torch.no_grad()
    def draw(
        self,
        prompt: Tensor,
        *,
        steps: int,
        ids: bool = True,
        z: bool = True,
        temperature: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Digits [B, N, Q] and z [B, N, C] behind prompts [B, P, W], both from noise to data in `steps` steps.

        ids, z: which parts come down; a part that does not stays noise. Masked ids are drawn with chance
        (t - t') / t in the step from t to t', vectors take an Euler step. Raises: ValueError for no steps or no part.
        """
        if steps < 1 or not (ids or z):
            raise ValueError(f"joint diffusion: expected steps >= 1 and ids or z, got {steps}, {ids} and {z}")
        batch, tokens = prompt.shape[0], len(self.position)
        digits = torch.full((batch, tokens, len(self.sizes)), -1)
        vectors = torch.randn(batch, tokens, self.channels, generator=generator)
        one = torch.ones(batch)
        for step in range(steps):
            now, then = 1 - step / steps, 1 - (step + 1) / steps
            logits, velocity = self(prompt, digits, vectors, now * one if ids else one, now * one if z else one)
            if ids:
                drawn = draw_digits(logits, self.sizes, temperature, generator)
                shown = torch.rand(batch, tokens, generator=generator) < (now - then) / now
                digits = torch.where((digits < 0) & shown[..., None], drawn, digits)
            if z:
                vectors = vectors + (now - then) * velocity
        return digits, vectors
