"""Portraits behind a frozen continuous tokenizer, encoded once and kept in a file, with what they show.

S pictures, N tokens of a square grid, C latent channels, W width of semantic tokens.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from vistok.data.scenes.backgrounds import BACKGROUNDS
from vistok.data.scenes.layout import Layout
from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import background_of, render
from vistok.data.scenes.splits import seeds_of
from vistok.rows import grid_coords
from vistok.tokenizers.mingtok import MingTok
from vistok.tokens import TokenTensor
from vistok.train.portrait_reader import ATTRIBUTES

SHOWN: Mapping[str, tuple[str, ...]] = {**ATTRIBUTES, "background": BACKGROUNDS}
_BATCH = 50


@dataclass(frozen=True)
class PortraitLatents:
    """latents [S, N, C] float32, semantic [S, N, W] float16; attributes: names in SHOWN -> [S] int64, places
    among the values there.
    """

    latents: Tensor
    semantic: Tensor
    attributes: Mapping[str, Tensor]

    def __len__(self) -> int:
        return len(self.latents)

    def tokens(self, tokenizer: MingTok, chosen: Tensor) -> tuple[TokenTensor, TokenTensor]:
        """Latents and semantic tokens of the pictures `chosen` [B] int64."""
        side = round(self.latents.shape[1] ** 0.5)
        pixels = side * tokenizer.patch
        spec = replace(tokenizer.spec, grid=(side, side), image_size=(pixels, pixels))
        latents = TokenTensor(spec=spec, embeds=self.latents[chosen], coords=grid_coords(side, side, batch=len(chosen)))
        embeds = self.semantic[chosen].float()
        return latents, replace(latents, spec=tokenizer.semantic_spec(spec), embeds=embeds)

    @torch.no_grad()
    def reconstructions(self, tokenizer: MingTok, count: int) -> Tensor:
        """The first `count` pictures as the tokenizer decodes them, [count, 3, side, side] in [0, 1]."""
        numbers = torch.arange(min(count, len(self))).split(_BATCH)
        return torch.cat([tokenizer.decode(self.tokens(tokenizer, chosen)[1]) for chosen in numbers])


def attributes_of_portraits(layouts: Sequence[Layout]) -> dict[str, Tensor]:
    """What layouts of `portrait` show: names in SHOWN -> [S] int64."""
    shown = [{**vars(layout.things[0]), "background": background_of(layout)} for layout in layouts]
    return {name: torch.tensor([values.index(row[name]) for row in shown]) for name, values in SHOWN.items()}


@torch.no_grad()
def encode_portraits(tokenizer: MingTok, split: str, count: int, side: int) -> PortraitLatents:
    """Render the first portraits of a split at `side` pixels, a multiple of the patch, and encode them.

    Raises: ValueError for a side that is no multiple of the tokenizer's patch.
    """
    if side % tokenizer.patch:
        raise ValueError(f"portraits: expected a side that is a multiple of the patch {tokenizer.patch}, got {side}")
    layouts = [portrait(seed) for seed in seeds_of(split)[:count]]
    latents, semantic = list[Tensor](), list[Tensor]()
    for start in range(0, count, _BATCH):
        pictures = np.stack([render(layout, side).image for layout in layouts[start : start + _BATCH]])
        z = tokenizer.latents(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255).patches
        latents.append(z)
        semantic.append(tokenizer.semantic_features(z).patches.half())
    return PortraitLatents(torch.cat(latents), torch.cat(semantic), attributes_of_portraits(layouts))


def kept_portraits(file: Path, tokenizer: MingTok, split: str, count: int, side: int, weights: str) -> PortraitLatents:
    """Those of `file` if it holds just these, else encoded and written there, whole or not at all.

    weights: what names the tokenizer's weights, for example their fingerprint.
    """
    wanted = {"split": split, "count": str(count), "side": str(side), "weights": weights}
    if file.is_file():
        with safe_open(file, "pt") as stored:
            if stored.metadata() == wanted:
                kept = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
                return PortraitLatents(kept.pop("latents"), kept.pop("semantic"), kept)
    found = encode_portraits(tokenizer, split, count, side)
    partial = file.with_name(f"{file.name}.tmp.{os.getpid()}")
    save_file({"latents": found.latents, "semantic": found.semantic, **found.attributes}, partial, wanted)
    os.replace(partial, file)
    return found
