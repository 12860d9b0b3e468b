"""Which tokens of a prompt are what: visual or text, of which image, before or behind. B items, n tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.family import Family


@dataclass(frozen=True, eq=False)
class Prompt:
    """valid [B, n] bool; image_ids [B, n] int64: image within its item, -1 elsewhere; source [B, n] int64: place in
    the prompt as it was given."""

    valid: Tensor
    image_ids: Tensor
    source: Tensor

    @property
    def visual(self) -> Tensor:
        """[B, n] bool."""
        return self.image_ids >= 0

    @property
    def system(self) -> Tensor:
        """[B, n] bool: valid tokens before the first visual one; all of an item that has none."""
        return self.valid & (self.visual.cumsum(1) == 0)

    @property
    def instruction(self) -> Tensor:
        """[B, n] bool: valid tokens behind the last visual one; none of an item that has no visual token."""
        behind = self.visual.flip(1).cumsum(1).flip(1) == 0
        return self.valid & behind & self.visual.any(1, keepdim=True)

    @property
    def text(self) -> Tensor:
        """[B, n] bool: valid tokens behind the first visual one that are not visual."""
        return self.valid & ~self.visual & ~self.system


@dataclass(frozen=True, eq=False)
class Visuals:
    """Where the features of one modality go: ids [B, n] int64, the feature of every placeholder, -1 elsewhere; counts:
    features per image."""

    ids: Tensor
    counts: list[int]

    @property
    def images(self) -> Tensor:
        """[B, n] int64: the image, counted over the whole batch, of every placeholder, -1 elsewhere."""
        counts = torch.tensor([*self.counts, 0], device=self.ids.device)
        of_feature = torch.arange(len(counts), device=self.ids.device).repeat_interleave(counts)
        return torch.where(self.ids >= 0, of_feature[self.ids.clamp(min=0)], -1) if len(of_feature) else self.ids


def locate(config: Any, family: Family, ids: Tensor, features: Mapping[str, list[Tensor]]) -> dict[str, Visuals]:
    """The placeholders of every modality that has features: they are filled row by row.

    Raises: ValueError if placeholders and features differ in number.
    """
    found = {}
    for name, values in features.items():
        token = getattr(config, family.modalities[name].placeholder)
        here = ids == token
        counts = [len(value) for value in values]
        if int(here.sum()) != sum(counts):
            raise ValueError(
                f"prune: expected as many {name} placeholders (token {token}) in input_ids as {name} features, got "
                f"{int(here.sum())} and {sum(counts)}"
            )
        order = here.flatten().cumsum(0).reshape(here.shape) - 1
        found[name] = Visuals(torch.where(here, order, -1), counts)
    return found


def prompt_of(ids: Tensor, mask: Tensor | None, visuals: Mapping[str, Visuals], source: Tensor | None = None) -> Prompt:
    """The prompt of input_ids [B, n] (or any tensor of that shape) and its padding mask [B, n]."""
    valid = torch.ones(ids.shape[:2], dtype=torch.bool, device=ids.device) if mask is None else mask.bool()
    places = torch.arange(ids.shape[1], device=ids.device).expand(ids.shape[:2]) if source is None else source
    keys = torch.full(ids.shape[:2], -1, device=ids.device)
    for number, visual in enumerate(visuals.values()):
        images = visual.images
        keys = torch.where(images >= 0, images * len(visuals) + number, keys)
    return Prompt(valid, _within_item(keys), places)


def _within_item(keys: Tensor) -> Tensor:
    """Numbers 0, 1, ... in the order in which other keys >= 0 [B, n] begin in a row; an image lies in one piece."""
    before = torch.cat([keys.new_full((len(keys), 1), -1), keys[:, :-1]], 1)
    begins = (keys >= 0) & (keys != before)
    return torch.where(keys >= 0, begins.cumsum(1) - 1, -1)
