"""Visual prompt tuning: learned tokens among those of a vision transformer (Jia et al., ECCV 2022, arXiv:2203.12119).

P prompts stand behind the prefix (class and register tokens) of every block's input; a deep model gives each block
prompts of its own in the place of the last block's, a shallow one lets the first ones pass through. They leave behind
the last block, so that whatever pools the tokens never sees them. B images, N tokens, D width, L blocks.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn


class VisualPrompts(nn.Module):
    """Prompts [L or 1, P, D] and the hooks that put them in; `start`, `stop`: where they stand among the tokens."""

    def __init__(self, vit: Any, num_prompts: int, *, deep: bool = True) -> None:
        """Install on the blocks of a timm VisionTransformer for good. Raises: ValueError for fewer than one prompt."""
        super().__init__()
        if num_prompts < 1:
            raise ValueError(f"visual prompts: expected at least 1, got {num_prompts}")
        self.start = int(vit.num_prefix_tokens)
        self.stop = self.start + num_prompts
        self.deep = deep
        patch = vit.patch_embed.patch_size
        bound = math.sqrt(6 / (3 * patch[0] * patch[1] + vit.embed_dim))
        like = next(vit.parameters())
        self.prompts = nn.Parameter(like.new_empty(len(vit.blocks) if deep else 1, num_prompts, vit.embed_dim))
        nn.init.uniform_(self.prompts, -bound, bound)
        for layer, block in enumerate(vit.blocks):
            if layer == 0 or deep:
                # First of all, so that other hooks see what the block sees.
                block.register_forward_pre_hook(_Insert(self, layer), prepend=True)
        vit.blocks[-1].register_forward_hook(_Remove(self))

    def insert(self, tokens: Tensor, layer: int) -> Tensor:
        """Tokens [B, N, D], behind the first block [B, N + P, D] -> [B, N + P, D] with the block's prompts."""
        prompts = self.prompts[layer].expand(len(tokens), -1, -1)
        rest = tokens[:, self.start if layer == 0 else self.stop :]
        return torch.cat([tokens[:, : self.start], prompts, rest], 1)

    def remove(self, tokens: Tensor) -> Tensor:
        """[B, N + P, D] -> [B, N, D]."""
        return torch.cat([tokens[:, : self.start], tokens[:, self.stop :]], 1)


class _Insert:
    """A hook that is copied together with the prompts it puts in."""

    def __init__(self, prompts: VisualPrompts, layer: int) -> None:
        self.prompts, self.layer = prompts, layer

    def __call__(self, _module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (self.prompts.insert(args[0], self.layer), *args[1:])


class _Remove:
    def __init__(self, prompts: VisualPrompts) -> None:
        self.prompts = prompts

    def __call__(self, _module: nn.Module, _args: Any, tokens: Tensor) -> Tensor:
        return self.prompts.remove(tokens)


def add_visual_prompts(vit: Any, num_prompts: int = 10, *, deep: bool = True) -> VisualPrompts:
    """Freeze a timm VisionTransformer and give it prompts, as `vit.visual_prompts`; they alone take a gradient.

    Raises: ValueError if it has some already, or for fewer than one.
    """
    if hasattr(vit, "visual_prompts"):
        raise ValueError("visual prompts: expected a backbone without any, this one has prompts already")
    vit.requires_grad_(False)
    vit.visual_prompts = VisualPrompts(vit, num_prompts, deep=deep)
    prompts: VisualPrompts = vit.visual_prompts
    return prompts
