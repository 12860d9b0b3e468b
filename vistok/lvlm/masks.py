"""Attention masks of prompts from which tokens are missing. B items, n tokens, n' kept ones, t new ones.

A mask is None (causal), [B, n] (1 = valid; flash attention), or [B or 1, 1, rows, keys] bool (True = visible) or float
(0 = visible). dead [B, n'] bool: tokens that stand in for dropped ones, so that all items are of one length; no other
token may see them.
"""

from typing import Any

import torch
from torch import Tensor


def prefill_mask(
    mask: Tensor | None, index: Tensor, dead: Tensor | None, like: Tensor, attention: str
) -> Tensor | None:
    """The mask of the places index [B, n'] of a prompt; like: hidden states, for device and dtype."""
    if mask is not None and mask.ndim == 2:
        mask = mask.gather(1, index)
        return mask if dead is None else mask.masked_fill(dead, 0)
    if mask is not None:
        rows = mask.expand(len(index), -1, -1, -1)
        rows = rows.gather(2, index[:, None, :, None].expand(-1, rows.shape[1], -1, rows.shape[3]))
        mask = rows.gather(3, index[:, None, None].expand(-1, rows.shape[1], rows.shape[2], -1))
    if dead is None:
        return mask
    if "flash" in attention:
        return (~dead).to(torch.int64)
    width = index.shape[1]
    if mask is None:
        visible = torch.ones(width, width, dtype=torch.bool, device=like.device).tril()[None, None]
        mask = _as_mask(visible.expand(len(index), -1, -1, -1), like, attention)
    # A dead token sees itself: a row that sees nothing has no softmax.
    hidden = dead[:, None, None] & ~torch.eye(width, dtype=torch.bool, device=like.device)
    return _hide(mask, hidden)


def decode_mask(
    mask: Tensor | None, index: Tensor, dead: Tensor | None, prompt: int, past: int, like: Tensor, attention: str
) -> Tensor | None:
    """The mask of new rows over index [B, n'] of `prompt` tokens and all later ones; past: tokens before the rows."""
    if mask is None and dead is None:
        return None
    new = past - prompt + like.shape[1]
    if mask is not None:
        later = torch.arange(prompt, prompt + new, device=index.device).expand(len(index), -1)
        columns = torch.cat([index, later], 1)
        if mask.ndim == 2:
            mask = mask.gather(1, columns)
        else:
            mask = mask.expand(len(index), -1, -1, -1)
            mask = mask.gather(3, columns[:, None, None].expand(-1, mask.shape[1], mask.shape[2], -1))
    if dead is None:
        return mask
    gone = torch.nn.functional.pad(dead, (0, new))
    if "flash" in attention or (mask is not None and mask.ndim == 2):
        return (~gone).to(torch.int64) if mask is None else mask.masked_fill(gone, 0)
    if mask is None:
        rows, keys = like.shape[1], gone.shape[1]
        visible = torch.ones(rows, keys, dtype=torch.bool, device=like.device).tril(keys - rows)[None, None]
        mask = _as_mask(visible.expand(len(index), -1, -1, -1), like, attention)
    return _hide(mask, gone[:, None, None])


def with_key_bias(mask: Tensor | None, bias: Tensor, like: Tensor) -> Tensor:
    """The mask of like's rows [B, rows, D] with bias [B, keys] added to the scores of every key.

    Raises: ValueError for a padding mask, to which flash attention adds nothing.
    """
    if mask is not None and mask.ndim == 2:
        raise ValueError("prune: expected sdpa or eager attention where merged tokens weigh more, got flash attention")
    rows, keys = like.shape[1], bias.shape[1]
    if mask is None:
        mask = torch.ones(rows, keys, dtype=torch.bool, device=like.device).tril(keys - rows)[None, None]
    scores = _as_mask(mask, like, "eager") if mask.dtype == torch.bool else mask
    # Added to the least number there is, a bias would overflow.
    least = torch.finfo(scores.dtype).min
    return torch.where(scores > least / 2, scores + bias[:, None, None].to(scores.dtype), least)


def _as_mask(visible: Tensor, like: Tensor, attention: str) -> Tensor:
    if attention != "eager":
        return visible
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    return torch.where(visible, zero, torch.finfo(like.dtype).min)


def _hide(mask: Tensor, hidden: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return mask & ~hidden
    return mask.masked_fill(hidden, torch.finfo(mask.dtype).min)


def padding_mask(mask: Any, index: Tensor, dead: Tensor, prompt: int, total: int) -> Tensor:
    """[B, n' + t] padding mask of a prompt cut at the decoder's input; mask: that of all `total` tokens, or None.

    Raises: ValueError if the mask has another shape.
    """
    full = index.new_ones(len(index), total) if mask is None else mask
    if not isinstance(full, Tensor) or full.ndim != 2 or full.shape[1] != total:
        given = tuple(full.shape) if isinstance(full, Tensor) else type(full).__name__
        raise ValueError(
            f"prune: expected attention_mask [B, {total}] over the full prompt and all later tokens, got {given}"
        )
    return torch.cat([full.gather(1, index).masked_fill(dead, 0), full[:, prompt:]], 1)
