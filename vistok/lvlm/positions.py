"""Rotary positions of prompts from which tokens are missing. B items, n tokens, n' kept ones.

"keep": a token keeps the position that it had in the full prompt. "reindex": it moves up by the tokens dropped before
it, which only positions with one axis allow.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.family import Family
from vistok.lvlm.prompt import Visuals

POLICIES = ("keep", "reindex")


def full_positions(
    model: Any, family: Family, inputs: Mapping[str, Any], visuals: Mapping[str, Visuals]
) -> tuple[Tensor, Tensor | None]:
    """Positions [B, n], or [4, B, n] with mRoPE (text row first), of the full prompt, and mRoPE's deltas [B, 1]."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    if not family.mrope:
        if inputs.get("position_ids") is not None:
            return inputs["position_ids"].expand(ids.shape), None
        return text_positions(ids, mask), None
    given = inputs.get("position_ids")
    if given is None:
        kinds = inputs.get("mm_token_type_ids")
        kinds = token_types(ids, visuals) if kinds is None else kinds
        grids = {name: inputs.get(name) for name in ("image_grid_thw", "video_grid_thw")}
        given, _ = model.model.get_rope_index(ids, mm_token_type_ids=kinds, attention_mask=mask, **grids)
    text = text_positions(ids, mask)
    full = given if given.shape[0] == 4 else torch.cat([text[None], given.to(ids.device)])
    return full, full[1:].amax((0, 2))[:, None] - text[:, -1:]


def text_positions(ids: Tensor, mask: Tensor | None) -> Tensor:
    """[B, n]: 0, 1, ... over the valid tokens of an item."""
    if mask is None:
        return torch.arange(ids.shape[1], device=ids.device).expand(ids.shape)
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def token_types(ids: Tensor, visuals: Mapping[str, Visuals]) -> Tensor:
    """[B, n] int64: 0 text, 1 image, 2 video."""
    kinds = torch.zeros_like(ids)
    for name, number in (("image", 1), ("video", 2)):
        if name in visuals:
            kinds = kinds.masked_fill(visuals[name].ids >= 0, number)
    return kinds


def gathered_positions(full: Tensor, index: Tensor, kept: Tensor, policy: str, mrope: bool) -> Tensor:
    """Positions of the places index [B, n'] of full [..., B, n], of which kept [B, n] bool are left.

    Raises: ValueError for an unknown policy, or "reindex" with mRoPE.
    """
    check_policy(policy, mrope)
    if policy == "reindex":
        full = moved_up(full, kept)
    return full.gather(-1, index.expand(*full.shape[:-1], index.shape[-1]))


def moved_up(positions: Tensor, kept: Tensor) -> Tensor:
    """Positions [B, n] less the dropped tokens before each."""
    return (positions - (~kept).cumsum(-1)).clamp(min=0)


def check_policy(policy: str, mrope: bool) -> None:
    """Raise ValueError unless positions can be treated that way."""
    if policy not in POLICIES:
        raise ValueError(f"prune: expected positions to be one of {POLICIES}, got {policy!r}")
    if policy == "reindex" and mrope:
        raise ValueError("prune: expected positions='keep' where positions have three axes (mRoPE), got 'reindex'")
