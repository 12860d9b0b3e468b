"""A small net that says what a picture of one thing shows: the judge of pictures that a language model draws.

It learns from rendered pictures behind the same tokenizer, never from drawn ones; how well it reads pictures that it
never saw says how far its verdict can be trusted. B pictures, side a multiple of 16.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vistok.data.scenes.layout import COLORS, SHAPES, SIZES, TEXTURES

ATTRIBUTES: Mapping[str, tuple[str, ...]] = {"size": SIZES, "texture": TEXTURES, "color": COLORS, "shape": SHAPES}


def attributes_of(captions: list[str]) -> dict[str, Tensor]:
    """The attributes that captions "a size texture color shape" name, each [B] int64."""
    words = [caption.split()[1:5] for caption in captions]
    return {
        name: torch.tensor([values.index(said[place]) for said in words])
        for place, (name, values) in enumerate(ATTRIBUTES.items())
    }


class PortraitReader(nn.Module):
    """Convolutions on patches of 4 x 4 pixels, one head for each attribute."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.GELU(),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1, stride=2),
            nn.GELU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
        )
        self.heads = nn.ModuleDict({name: nn.Linear(8 * width, len(values)) for name, values in ATTRIBUTES.items()})

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """images [B, 3, side, side] in [0, 1] -> logits [B, values] of each attribute."""
        features = self.body(2 * images - 1)
        return {name: head(features) for name, head in self.heads.items()}

    @classmethod
    def learn(
        cls,
        images: Tensor,
        wanted: Mapping[str, Tensor],
        *,
        steps: int,
        batch: int = 64,
        rate: float = 2e-3,
        seed: int = 0,
    ) -> "PortraitReader":
        """From pictures [S, 3, side, side] and what they show, each attribute [S] int64; the rate falls to 0."""
        draw = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            reader = cls()
        optimizer = torch.optim.AdamW(reader.parameters(), rate, weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
        for _ in range(steps):
            chosen = torch.randint(len(images), (batch,), generator=draw)
            logits = reader(images[chosen])
            loss = torch.stack([nn.functional.cross_entropy(logits[name], wanted[name][chosen]) for name in ATTRIBUTES])
            optimizer.zero_grad()
            loss.sum().backward()
            optimizer.step()
            schedule.step()
        return reader.eval()

    @torch.no_grad()
    def accuracy(self, images: Tensor, wanted: Mapping[str, Tensor]) -> dict[str, float]:
        """How often each attribute is read as it should be."""
        return {name: float((got.argmax(1) == wanted[name]).float().mean()) for name, got in self(images).items()}
