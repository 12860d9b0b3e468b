"""Batches out of single samples of any grid, for a DataLoader's `collate_fn` or for `TokenStore.iter`.

B samples, N slots of the longest, D width, T tokens of the whole batch, Q codebooks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vistok.tokens import TokenTensor

Collate = Callable[[Sequence[TokenTensor]], Any]


def padded(pad_id: int = 0) -> Collate:
    """Pad to the longest sample.

    Gives a dict: ids [B, N] or [B, N, Q] int64 with `pad_id` in the padding and embeds [B, N, D] with zeros there, each
    if the samples have them; mask [B, N] bool, True = valid; lengths [B] int64.
    """
    return partial(_padded, pad_id=pad_id)


def packed(max_tokens: int | None = None) -> Collate:
    """Join without padding, as varlen attention takes it; more than `max_tokens` in a batch are an error.

    Gives a dict: values [T] or [T, Q] int64 ids, or [T, D] embeds of samples without ids; cu_seqlens [B + 1] int32;
    max_seqlen int.
    """
    return partial(_packed, max_tokens=max_tokens)


def jagged() -> Collate:
    """Join into one torch nested tensor [B, j, ...] of layout jagged: ids, or embeds of samples without ids."""
    return _jagged


def _padded(items: Sequence[TokenTensor], *, pad_id: int) -> dict[str, Tensor]:
    items = _samples(items)
    lengths = _lengths(items)
    batch = {"mask": torch.arange(int(lengths.max())) < lengths[:, None], "lengths": lengths}
    if items[0].indices is not None:
        batch["ids"] = pad_sequence(_field(items, "indices"), batch_first=True, padding_value=pad_id)
    if items[0].embeds is not None:
        batch["embeds"] = pad_sequence(_field(items, "embeds"), batch_first=True)
    return batch


def _packed(items: Sequence[TokenTensor], *, max_tokens: int | None) -> dict[str, Tensor | int]:
    items = _samples(items)
    lengths = _lengths(items)
    total = int(lengths.sum())
    if max_tokens is not None and total > max_tokens:
        raise ValueError(
            f"packed: expected at most {max_tokens} tokens, got {total} in {len(items)} samples; give "
            f"max_tokens={max_tokens} to TokenStore.iter, which fills batches up to that"
        )
    cu_seqlens = torch.zeros(len(items) + 1, dtype=torch.int32)
    cu_seqlens[1:] = lengths.cumsum(0)
    return {"values": torch.cat(_tokens(items)), "cu_seqlens": cu_seqlens, "max_seqlen": int(lengths.max())}


def _jagged(items: Sequence[TokenTensor]) -> Tensor:
    items = _samples(items)
    lengths = _lengths(items)
    offsets = torch.zeros(len(items) + 1, dtype=torch.int64)
    offsets[1:] = lengths.cumsum(0)
    # Without both bounds torch sizes a padded row by the whole of `values`.
    return torch.nested.nested_tensor_from_jagged(
        torch.cat(_tokens(items)), offsets, min_seqlen=int(lengths.min()), max_seqlen=int(lengths.max())
    )


def _samples(items: Sequence[TokenTensor]) -> list[TokenTensor]:
    if not items:
        raise ValueError("collate: expected at least one sample, got none")
    for item in items:
        if len(item) != 1:
            raise ValueError(f"collate: expected samples as batches of one, got a batch of {len(item)}")
    return [item.trim() for item in items]


def _lengths(items: Sequence[TokenTensor]) -> Tensor:
    return torch.tensor([item.num_slots for item in items], dtype=torch.int64)


def _tokens(items: Sequence[TokenTensor]) -> list[Tensor]:
    return _field(items, "embeds" if items[0].indices is None else "indices")


def _field(items: Sequence[TokenTensor], name: str) -> list[Tensor]:
    found = [getattr(item, name) for item in items]
    if any(value is None for value in found):
        raise ValueError(f"collate: expected {name} in every sample or in none, got both")
    return [value[0] for value in found]
