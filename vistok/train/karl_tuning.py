"""Stage 2 of KARL: all of it trains on pixels (arXiv:2507.07995, appendix; the balance is arXiv:2012.09841, eq. 7).

loss = mean |x - x^| + w_p perceptual(x^, x) - g b mean D(x^),  b = |grad rec| / (|grad gan| + 1e-4) at the last layer
of the base's decoder. One discriminator for each range of budgets: few tokens fail in other ways than many.
"""

from typing import Any

import torch
from torch import Tensor, nn

from vistok.tokenizers.karl import Karl, Run
from vistok.train.karl_losses import Reconstruct, Step, Terms
from vistok.train.losses import Loss, PatchDiscriminator, hinge_discriminator_loss, make_losses

_SLOTS_PER_DISCRIMINATOR = 32


class Tuning(nn.Module):
    """The discriminators with their optimizer, and the loss that they and a perceptual network add."""

    def __init__(
        self,
        model: Karl,
        *,
        perceptual: dict[str, float] | None = None,
        adversarial: float = 0.2,
        adversarial_start: int = 0,
        later_adversarial: float = 0.8,
        later_start: int | None = None,
        discriminators: int = 8,
        discriminator_steps: int = 8,
        learning_rate: float = 1e-4,
    ) -> None:
        """perceptual: losses by name and weight, for example {"st_lpips": 1.0}, which needs the extra `metrics`.

        adversarial: g from step adversarial_start on, later_adversarial from later_start on. discriminator_steps: of
        each discriminator_steps + 1 steps, all but the last train the discriminators.
        Raises: ValueError if the base is plain pixels, which have no decoder to balance at.
        """
        super().__init__()
        if not hasattr(model.base_tokenizer, "last_layer"):
            raise ValueError("karl tuning: expected a base with a decoder; train plain pixels by distillation")
        self._model: list[Karl] = [model]  # in a list, or its weights would count as this module's
        self.perceptual: dict[str, tuple[float, Loss]] = make_losses(perceptual or {})
        self.adversarial, self.adversarial_start = adversarial, adversarial_start
        self.later_adversarial, self.later_start = later_adversarial, later_start
        self.discriminator_steps = discriminator_steps
        self.discriminators = nn.ModuleList(PatchDiscriminator(64) for _ in range(discriminators))
        self.optimizer = torch.optim.AdamW(self.discriminators.parameters(), learning_rate, (0.9, 0.95))

    def weight(self, step: int) -> float:
        """g at a step, 0 before the discriminators begin."""
        if step < self.adversarial_start:
            return 0.0
        return self.adversarial if self.later_start is None or step < self.later_start else self.later_adversarial

    def is_discriminator_step(self, step: int) -> bool:
        """Whether a step trains the discriminators instead of the model."""
        return self.weight(step) > 0 and (step + 1) % (self.discriminator_steps + 1) != 0

    def discriminator_of(self, slots: int) -> Any:
        """The discriminator for images of so many slots."""
        return self.discriminators[max(0, min(len(self.discriminators), slots // _SLOTS_PER_DISCRIMINATOR) - 1)]

    def reconstruct(self, step: int) -> Reconstruct:
        """The loss terms of one run at a step."""
        return self._terms(self.weight(step))

    def train_discriminator(self, step: Step, images: Tensor) -> Terms:
        """One update on the images of all runs, half of the hinge loss each; returns that loss."""
        losses = []
        for run, slots in zip(step.runs, step.slots, strict=True):
            judge = self.discriminator_of(slots)
            fake = self._pixels(run).detach()
            losses.append(0.5 * hinge_discriminator_loss(judge(images), judge(fake)))
        loss = torch.stack(losses).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"discriminator": loss.detach()}

    def get_extra_state(self) -> dict[str, Any]:
        """The optimizer, so that a checkpoint of this module is whole."""
        return self.optimizer.state_dict()

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """As `get_extra_state` gave it."""
        self.optimizer.load_state_dict(state)

    def _terms(self, weight: float) -> Reconstruct:
        def terms(run: Run, images: Tensor, slots: int) -> Terms:
            pixels = self._pixels(run)
            found = {"l1": (pixels - images).abs().mean()}
            found |= {name: scale * loss(pixels, images) for name, (scale, loss) in self.perceptual.items()}
            if weight:
                rating = -self.discriminator_of(slots)(pixels).mean()
                rest = torch.stack(list(found.values())).sum()
                found["adversarial"] = weight * balance(rest, rating, self._model[0].base_tokenizer.last_layer) * rating
            return found

        return terms

    def _pixels(self, run: Run) -> Tensor:
        pixels: Tensor = self._model[0].base_tokenizer.pixels(run.decoded.float(), run.grid)
        return pixels.float()


def balance(reconstruction: Tensor, rating: Tensor, layer: Tensor) -> Tensor:
    """|grad reconstruction| / (|grad rating| + 1e-4) with respect to `layer`, at most 1e4, without a gradient."""
    (of_reconstruction,) = torch.autograd.grad(reconstruction, layer, retain_graph=True)
    (of_rating,) = torch.autograd.grad(rating, layer, retain_graph=True)
    ratio: Tensor = of_reconstruction.norm() / (of_rating.norm() + 1e-4)
    return ratio.clamp(0.0, 1e4).detach()
