"""Rectified flow (arXiv:2209.03003) over tokens: what a velocity net is trained on, and how tokens are drawn from it.

x_t = (1 - t) z + t eps, v = z - eps; from t = 1 (noise) down to 0 (data) by Euler steps. Any callable
v(x, t, condition) will do. B tokens at once, R rows of conditions for guidance, C channels, Z width of a condition.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Velocity = Callable[[Tensor, Tensor, Tensor], Tensor]
"""x [P, C], t [P], condition [P, Z] -> velocity [P, C]."""


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance (arXiv:2207.12598) with one scale for text and one for images (arXiv:2211.09800).

    One row: v_c. Two, condition and none: v_u + text (v_c - v_u). Three, the third without text but with images:
    v_u + image (v_t - v_u) + text (v_c - v_t). renormalize: no longer than v_c, token by token. The defaults are
    Ming-UniVision's.
    """

    text: float = 3.0
    image: float = 1.1
    renormalize: bool = False

    def combine(self, velocities: Tensor) -> Tensor:
        """velocities [R, B, C] -> [B, C]. Raises: ValueError unless R is 1, 2 or 3."""
        if velocities.shape[0] not in (1, 2, 3):
            raise ValueError(f"guidance: expected 1, 2 or 3 rows of conditions, got {velocities.shape[0]}")
        conditional: Tensor = velocities[0]
        if len(velocities) == 1:
            return conditional
        without = velocities[1]
        if len(velocities) == 2:
            guided: Tensor = without + self.text * (conditional - without)
        else:
            only_images = velocities[2]
            guided = without + self.image * (only_images - without) + self.text * (conditional - only_images)
        if self.renormalize:
            lengths = conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True).clamp(min=1e-12)
            guided = guided * lengths.clamp(max=1.0)
        return guided


def euler_times(steps: int, time_shift: float = 1.0) -> list[float]:
    """Times 1 = t_0 > ... > t_steps = 0; a shift s > 1 stays longer near the noise: 1 - u / (u + s - s u), u even.

    Raises: ValueError unless steps >= 1 and time_shift > 0.
    """
    if steps < 1 or not time_shift > 0:
        raise ValueError(f"flow: expected steps >= 1 and time_shift > 0, got {steps} and {time_shift}")
    even = [k / steps for k in range(steps + 1)]
    return [1 - u / (u + time_shift - time_shift * u) for u in even]


@torch.no_grad()
def sample(
    velocity: Velocity,
    conditions: Tensor,
    noise: Tensor,
    guidance: Guidance | None = None,
    *,
    steps: int = 16,
    time_shift: float = 1.0,
) -> Tensor:
    """Draw tokens [B, C] from noise [B, C] under conditions [R, B, Z]; all rows of a token share its noise.

    Raises: ValueError for shapes that do not belong together, or rows that guidance does not know.
    """
    if conditions.ndim != 3 or noise.ndim != 2 or conditions.shape[1] != len(noise):
        raise ValueError(
            f"flow: expected conditions [R, B, Z] and noise [B, C], got {list(conditions.shape)}, {list(noise.shape)}"
        )
    guidance = Guidance() if guidance is None else guidance
    rows, batch = conditions.shape[:2]
    flat = conditions.flatten(0, 1)
    x = noise
    times = euler_times(steps, time_shift)
    for now, then in zip(times, times[1:], strict=False):
        t = torch.full((rows * batch,), now, device=x.device)
        v = velocity(x.repeat(rows, 1).to(flat.dtype), t, flat).float().unflatten(0, (rows, batch))
        x = x + (now - then) * guidance.combine(v)
    return x


def flow_loss(
    velocity: Velocity,
    latents: Tensor,
    conditions: Tensor,
    *,
    weights: Tensor | None = None,
    repeats: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean squared error of the velocity at a random time of each token: latents [..., C], conditions [..., Z] -> [].

    weights [...]: how much each token counts, 0 where there is none to predict. repeats: times drawn for each token.
    Raises: ValueError for shapes that do not belong together or repeats below 1.
    """
    lead = latents.shape[:-1]
    if conditions.shape[:-1] != lead or (weights is not None and weights.shape != lead) or repeats < 1:
        raise ValueError(
            f"flow_loss: expected conditions {[*lead, 'Z']}, weights {list(lead)} and repeats >= 1, got "
            f"{list(conditions.shape)}, {None if weights is None else list(weights.shape)} and {repeats}"
        )
    z = latents.reshape(-1, latents.shape[-1]).float().repeat(repeats, 1)
    condition = conditions.reshape(-1, conditions.shape[-1]).repeat(repeats, 1)
    # Drawn where the generator lives, so that a seed gives the same on every device.
    where = z.device if generator is None else generator.device
    t = torch.rand(len(z), generator=generator, device=where).to(z.device)
    noise = torch.randn(z.shape, generator=generator, device=where).to(z.device)
    x = (1 - t[:, None]) * z + t[:, None] * noise
    error = (velocity(x.to(condition.dtype), t, condition).float() - (z - noise)).square().mean(-1)
    if weights is None:
        return error.mean()
    counted = weights.reshape(-1).float().repeat(repeats)
    return (error * counted).sum() / counted.sum().clamp(min=1e-12)
