"""What a token-tensor and its arguments must look like: each check names the field, what was expected and given."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vistok.rows import is_readable, shape_of

if TYPE_CHECKING:
    from vistok.tokens import Selection, TokenTensor

ORDERS = ("raster", "1d", "causal-1d")


_EXPECTED = {
    "embeds": "[B, N, D] floating",
    "indices": "[B, N] or [B, N, Q] int64",
    "coords": "[B, N, A] int32",
    "scores": "[B, N] float32",
    "source": "[B, N] int64",
    "sizes": "[B, N] float32",
}
_FIELD_RULES: dict[str, tuple[tuple[int, ...], Callable[[torch.dtype], bool]]] = {
    "embeds": ((3,), lambda dtype: dtype.is_floating_point),
    "indices": ((2, 3), lambda dtype: dtype == torch.int64),
    "coords": ((3,), lambda dtype: dtype == torch.int32),
    "scores": ((2,), lambda dtype: dtype == torch.float32),
    "source": ((2,), lambda dtype: dtype == torch.int64),
    "sizes": ((2,), lambda dtype: dtype == torch.float32),
}


def check_tokens(tokens: "TokenTensor") -> None:
    """Raise ValueError unless every field agrees with the others and with the spec. Reads values on the host."""
    if tokens.anchor.ndim < 2:
        raise ValueError(f"TokenTensor: expected embeds [B, N, D] or indices [B, N], got {shape_of(tokens.anchor)}")
    batch, slots = tokens.anchor.shape[:2]
    for name, value in tokens.tensors().items():
        if value.device != tokens.device:
            raise ValueError(f"TokenTensor.{name}: expected device {tokens.device}, got {value.device}")
    for name, value in tokens.token_tensors().items():
        ranks, kind = _FIELD_RULES[name]
        if value.ndim not in ranks or value.shape[:2] != (batch, slots):
            raise ValueError(
                f"TokenTensor.{name}: expected {_EXPECTED[name]} with B={batch}, N={slots}, got {shape_of(value)}"
            )
        if not kind(value.dtype):
            raise ValueError(f"TokenTensor.{name}: expected {_EXPECTED[name]}, got dtype {value.dtype}")
    _check_lengths(tokens)
    _check_spec(tokens)
    _check_ids(tokens)


def _check_lengths(tokens: "TokenTensor") -> None:
    lengths, (batch, slots) = tokens.lengths, tokens.anchor.shape[:2]
    if lengths is None:
        return
    if lengths.shape != (batch,) or lengths.dtype != torch.int64:
        raise ValueError(
            f"TokenTensor.lengths: expected [B] int64 with B={batch}, got {shape_of(lengths)} {lengths.dtype}"
        )
    if batch and not bool(((lengths >= 0) & (lengths <= slots)).all()):
        raise ValueError(f"TokenTensor.lengths: expected values in 0..{slots}, got {lengths.tolist()}")


def _check_spec(tokens: "TokenTensor") -> None:
    spec = tokens.spec
    for name in ("codebook_sizes", "grid", "image_size"):
        if not isinstance(getattr(spec, name), tuple):
            raise ValueError(f"TokenSpec.{name}: expected a tuple, got {getattr(spec, name)!r}")
    if spec.order not in ORDERS:
        raise ValueError(f"TokenSpec.order: expected one of {ORDERS}, got {spec.order!r}")
    if tokens.embeds is not None and spec.dim and tokens.embeds.shape[2] != spec.dim:
        raise ValueError(f"TokenTensor.embeds: expected width {spec.dim} (spec.dim), got {shape_of(tokens.embeds)}")


def _check_ids(tokens: "TokenTensor") -> None:
    spec, indices = tokens.spec, tokens.indices
    if indices is None:
        return
    books = len(spec.codebook_sizes)
    found = 1 if indices.ndim == 2 else indices.shape[2]
    if books and found != books:
        raise ValueError(f"TokenTensor.indices: expected {books} codebooks (spec), got {shape_of(indices)}")
    if books and indices.numel():
        ids = indices.reshape(*indices.shape[:2], found)
        ids = ids if tokens.lengths is None else ids[tokens.mask]
        sizes = torch.tensor(spec.codebook_sizes, device=ids.device)
        if bool(((ids < 0) | (ids >= sizes)).any()):
            raise ValueError(
                f"TokenTensor.indices: expected ids in 0..K-1 for codebooks of K={spec.codebook_sizes}, got "
                f"{int(ids.min())}..{int(ids.max())}"
            )


def check_selection(tokens: "TokenTensor", selection: "Selection") -> None:
    """Raise ValueError unless `selection` fits `tokens`; values are read on the CPU, outside of compiled graphs."""
    index, lengths, scores = selection
    batch, slots = tokens.anchor.shape[:2]
    if index.ndim != 2 or index.shape[0] != batch or index.dtype != torch.int64:
        raise ValueError(f"Selection.index: expected [B, K] int64 with B={batch}, got {shape_of(index)} {index.dtype}")
    # A slot of the flattened rows that is out of range would silently be a token of another item.
    if is_readable(index) and index.numel() and not 0 <= int(index.min()) <= int(index.max()) < slots:
        raise ValueError(
            f"Selection.index: expected slots in 0..N-1 with N={slots}, got {int(index.min())}..{int(index.max())}"
        )
    if lengths is not None and (lengths.shape != index.shape[:1] or lengths.dtype != torch.int64):
        raise ValueError(
            f"Selection.lengths: expected [B] int64 with B={batch}, got {shape_of(lengths)} {lengths.dtype}"
        )
    if scores is not None and scores.shape != (batch, slots):
        raise ValueError(f"Selection.scores: expected [B, N] [{batch}, {slots}], got {shape_of(scores)}")


def check_slots(slot: Tensor, count: int) -> None:
    """Raise ValueError unless slot [B, N] int64, 0..count with count = dropped, uses slots 0..k-1 of each item."""
    highest = int(slot.max()) if slot.numel() else 0
    if highest > count:
        raise ValueError(f"Assignment.slot: expected slots in -1..{count - 1} (count={count}), got {highest}")
    used = torch.zeros(slot.shape[0], count + 1, dtype=torch.bool).scatter_(1, slot, True)[:, :count]
    if bool((used[:, 1:] > used[:, :-1]).any()):
        raise ValueError(
            "Assignment.slot: expected the slots in use to be 0..k-1 for each item, got unused ones between"
        )
