"""Ids of items that all have the same number of codes: checked before they are used, and made of spans of a text."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vistok.ops.check_ids import check_ids
from vistok.protocols import Span
from vistok.tokens import TokenTensor


def item_ids(owner: str, tokens: TokenTensor, count: int, codes: int) -> Tensor:
    """indices [N, count] of tokens. Raises: ValueError, beginning with `owner`, unless all are in 0..codes-1."""
    ids = tokens.indices
    whole = tokens.lengths is None or bool((tokens.lengths == count).all())
    if ids is None or ids.ndim != 2 or ids.shape[1] != count or not whole:
        raise ValueError(f"{owner}: expected indices [N, {count}], all codes of every item, got {tokens!r}")
    check_codes(owner, ids, codes)
    return ids


def check_codes(owner: str, ids: Tensor, codes: int) -> None:
    """Raise ValueError, beginning with `owner`, unless ids [...] are int64 in 0..codes-1."""
    check_ids(owner, ids, codes)
    if ids.numel() and int(ids.min()) < 0:
        raise ValueError(f"{owner}: expected ids in 0..{codes - 1}, got {int(ids.min())}")


def ids_of_spans(owner: str, spans: Sequence[Span], count: int) -> Tensor:
    """Codes of spans as [N, count] int64. Raises: ValueError, beginning with `owner`, for a span of another length."""
    for span in spans:
        if len(span.codes) != count:
            raise ValueError(f"{owner}: expected spans of {count} codes, got {len(span.codes)}")
    return torch.tensor([span.codes for span in spans], dtype=torch.int64).reshape(len(spans), count)
