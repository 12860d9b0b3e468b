"""The token-tensor: one frozen value that every tokenizer writes and every pruner, store and language model reads.

Axes: B items, N token slots, K kept slots, D width, Q codebooks, A coordinate axes, T valid tokens of a whole batch.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from vistok.rows import has_values, is_readable, leaders, pad_slots, scatter_rows, shape_of, take_rows, weighted_mean
from vistok.token_checks import check_selection, check_slots, check_tokens
from vistok.torch_registration import register_with_torch


class Selection(NamedTuple):
    """What a pruner chose; the same selection applies to tokens, hidden states, position ids, masks and caches.

    index [B, K] int64 slots to keep, lengths [B] int64 or None (all K valid), scores [B, N] float32 or None.
    """

    index: Tensor  # type: ignore[assignment]
    lengths: Tensor | None = None
    scores: Tensor | None = None


class Assignment(NamedTuple):
    """Which output slot every token is merged into: slot [B, N] int64 in -1..count-1 (-1 = dropped)."""

    slot: Tensor
    count: int  # type: ignore[assignment]


class Packed(NamedTuple):
    """Valid tokens of a batch without padding, as varlen attention takes them.

    values: field name -> [T, ...]; cu_seqlens [B+1] int32; max_len: the longest item.
    """

    values: dict[str, Tensor]
    cu_seqlens: Tensor
    max_len: int


@dataclass(frozen=True)
class TokenSpec:
    """What the tokens of a batch are: everything static, hashable and equal for all items.

    name: tokenizer. dim: width of `embeds` (0 = indices only). codebook_sizes: entries per codebook, () = continuous.
    grid: tokens per axis (rows, cols). patch: pixels per token side. image_size: (H, W) to crop a decoded image to.
    prefix: leading tokens outside the grid. order: "raster", "1d" or "causal-1d". tile: tile side in pixels that
    encode worked in, 0 = whole images.
    """

    name: str
    dim: int = 0
    codebook_sizes: tuple[int, ...] = ()
    grid: tuple[int, ...] = ()
    patch: int = 0
    image_size: tuple[int, ...] = ()
    prefix: int = 0
    order: str = "raster"
    tile: int = 0


@dataclass(frozen=True, eq=False, repr=False)
class TokenTensor:
    """Padded tokens of a batch; the valid ones are a prefix of each row, what lies behind is unspecified.

    embeds [B, N, D] float; indices [B, N] or [B, N, Q] int64; lengths [B] int64 valid tokens (None = all N);
    coords [B, N, A] int32 cells of the finest patch; scores [B, N] float32, higher = keep; source [B, N] int64 position
    in the sequence that `encode` made; sizes [B, N] float32 original tokens that a token stands for (None = 1).
    Nothing is validated on construction, because pytree code builds instances out of anything: call `check()`.
    """

    spec: TokenSpec
    embeds: Tensor | None = None
    indices: Tensor | None = None
    lengths: Tensor | None = None
    coords: Tensor | None = None
    scores: Tensor | None = None
    source: Tensor | None = None
    sizes: Tensor | None = None

    @property
    def anchor(self) -> Tensor:
        """The field that tells B, N and the device: `embeds`, or `indices` where there are none."""
        anchor = self.embeds if self.embeds is not None else self.indices
        if anchor is None:
            raise ValueError("TokenTensor: expected embeds or indices, got neither; pass at least one of them")
        return anchor

    def __len__(self) -> int:
        # Python forces an int here, so code that is exported with a dynamic B reads `anchor.shape[0]` instead.
        return self.anchor.shape[0]

    @property
    def num_slots(self) -> int:
        """N, padding included."""
        return self.anchor.shape[1]

    @property
    def device(self) -> torch.device:
        """Device of the tokens."""
        return self.anchor.device

    @property
    def mask(self) -> Tensor:
        """[B, N] bool, True = valid."""
        slots = torch.arange(self.num_slots, device=self.device)
        return slots < self.valid_lengths[:, None]

    @property
    def valid_lengths(self) -> Tensor:
        """[B] int64 valid tokens, N where `lengths` is None."""
        if self.lengths is not None:
            return self.lengths
        return torch.full((self.anchor.shape[0],), self.num_slots, dtype=torch.int64, device=self.device)

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are present, `lengths` included, by name."""
        return {name: value for name in _TENSOR_FIELDS if (value := getattr(self, name)) is not None}

    def token_tensors(self) -> dict[str, Tensor]:
        """The per-token fields [B, N, ...] that are present, by name."""
        return {name: value for name, value in self.tensors().items() if name != "lengths"}

    def check(self) -> Self:
        """Return self if every field agrees with the others and with the spec.

        Raises: ValueError naming the field, what was expected and what was given.
        """
        check_tokens(self)
        return self

    def __repr__(self) -> str:
        parts = [f"{name}{shape_of(value)}" for name, value in self.token_tensors().items()]
        if self.lengths is not None:
            known = has_values(self.lengths) and self.lengths.numel()
            span = f" {int(self.lengths.min())}..{int(self.lengths.max())}" if known else shape_of(self.lengths)
            parts.append(f"lengths{span}")
        spec = f"{self.spec.name} {'x'.join(map(str, self.spec.grid))} {self.spec.order}"
        return f"TokenTensor({', '.join(parts)}; {spec})"

    def select(self, selection: Selection) -> Self:
        """Gather the chosen slots [B, K]; `source` keeps pointing at the sequence that `encode` made.

        Raises: ValueError if `selection.index` is not [B, K] int64 or (on the CPU, outside of compiled graphs) names
        slots that do not exist, or if the other fields do not fit.
        """
        index = selection.index
        check_selection(self, selection)
        taken: dict[str, Any] = {name: take_rows(value, index) for name, value in self.token_tensors().items()}
        if self.source is None:
            taken["source"] = index
        if selection.scores is not None:
            taken["scores"] = take_rows(selection.scores.float(), index)
        lengths = selection.lengths
        if lengths is None and self.lengths is not None:
            lengths = self.lengths.clamp(max=index.shape[1])
        return replace(self, **taken, lengths=lengths)

    def keep(self, mask: Tensor) -> Self:
        """Move the valid tokens where `mask` [B, N] bool is True to the front, order unchanged; N stays.

        Raises: ValueError if `mask` is not [B, N] bool.
        """
        if mask.dtype != torch.bool or mask.shape != self.anchor.shape[:2]:
            raise ValueError(
                f"keep: expected a bool mask {list(self.anchor.shape[:2])}, got {shape_of(mask)} {mask.dtype}"
            )
        mask = mask & self.mask
        index = torch.sort((~mask).to(torch.int8), dim=1, stable=True).indices
        return self.select(Selection(index, mask.sum(dim=1)))

    def truncate(self, budget: int | Tensor) -> Self:
        """Keep the first `budget` tokens of every item (int), or `budget[b]` tokens of item b ([B] int64; N stays).

        Raises: ValueError if `budget` is negative or not [B] integers.
        """
        if isinstance(budget, Tensor):
            if budget.shape != (self.anchor.shape[0],) or budget.is_floating_point():
                raise ValueError(
                    f"truncate: expected lengths [B] int64 with B={len(self)}, got {shape_of(budget)} {budget.dtype}"
                )
            if is_readable(budget) and bool((budget < 0).any()):
                raise ValueError(f"truncate: expected lengths >= 0, got {budget.tolist()}")
            return replace(self, lengths=torch.minimum(self.valid_lengths, budget.to(self.device, torch.int64)))
        if budget < 0:
            raise ValueError(f"truncate: expected a budget >= 0, got {budget}")
        cut: dict[str, Any] = {name: value[:, :budget] for name, value in self.token_tensors().items()}
        lengths = None if self.lengths is None else self.lengths.clamp(max=budget)
        return replace(self, **cut, lengths=lengths)

    def trim(self) -> Self:
        """Cut N to the longest item. Reads `lengths` on the host: call it at boundaries only."""
        if self.lengths is None:
            return self
        longest = int(self.lengths.max()) if len(self) else 0
        shorter = self.truncate(longest)
        return replace(shorter, lengths=None) if bool((self.lengths == longest).all()) else shorter

    def merge(self, assignment: Assignment) -> Self:
        """Average the tokens of each slot, weighted by `sizes`; coords, indices, source come from the largest one.

        Slots in use must be 0..k-1 for each item (k <= assignment.count becomes its length). Ties of size go to the
        lowest position. Averages are computed in float32 at least. Raises: ValueError if `assignment.slot` is not
        [B, N] int64 or (on the CPU, outside of compiled graphs) has slots out of range or unused ones between others.
        """
        slot, count = assignment
        if slot.dtype != torch.int64 or slot.shape != self.anchor.shape[:2]:
            raise ValueError(
                f"Assignment.slot: expected int64 {list(self.anchor.shape[:2])}, got {shape_of(slot)} {slot.dtype}"
            )
        if self.num_slots == 0:  # an empty slot needs some row to stand for its coords and source
            padded: dict[str, Any] = {name: pad_slots(value, 1) for name, value in self.token_tensors().items()}
            lengths = torch.zeros_like(self.valid_lengths)
            return replace(self, **padded, lengths=lengths).merge(
                Assignment(slot.new_zeros(self.anchor.shape[0], 1), count)
            )
        slot = torch.where(self.mask & (slot >= 0), slot, count)  # one slot more, thrown away below
        sizes = self.sizes if self.sizes is not None else torch.ones_like(slot, dtype=torch.float32)
        if is_readable(slot):
            check_slots(slot, count)
        total = scatter_rows(sizes, slot, count, "sum")
        leader = leaders(sizes, slot, count)
        merged: dict[str, Any] = {"sizes": total, "lengths": (total > 0).sum(dim=1)}
        for name, value in self.token_tensors().items():
            if name in ("embeds", "scores"):
                merged[name] = weighted_mean(value, sizes, total, slot)
            elif name != "sizes":
                merged[name] = take_rows(value, leader)
        if self.source is None:
            merged["source"] = leader
        return replace(self, **merged)

    def packed(self) -> Packed:
        """Drop the padding: every per-token field as [T, ...]. Synchronizes with the device."""
        lengths = self.valid_lengths
        mask = self.mask
        cu_seqlens = torch.zeros(len(self) + 1, dtype=torch.int32, device=self.device)
        cu_seqlens[1:] = lengths.cumsum(0)
        longest = int(lengths.max()) if len(self) else 0
        return Packed({name: value[mask] for name, value in self.token_tensors().items()}, cu_seqlens, longest)

    @classmethod
    def from_packed(cls, packed: Packed, spec: TokenSpec) -> Self:
        """Pad packed values [T, ...] back to [B, max_len, ...]; padding slots are zero. Synchronizes with the device.

        Raises: ValueError if `cu_seqlens` and `max_len` do not describe T tokens.
        """
        lengths = packed.cu_seqlens.to(torch.int64).diff()
        mask = torch.arange(packed.max_len, device=lengths.device) < lengths[:, None]
        total = int(mask.sum())
        padded: dict[str, Any] = {}
        for name, value in packed.values.items():
            if value.shape[0] != total:
                raise ValueError(
                    f"Packed.values[{name!r}]: expected T={total} tokens (cu_seqlens, max_len), got {shape_of(value)}"
                )
            out = value.new_zeros((len(lengths), packed.max_len, *value.shape[1:]))
            padded[name] = out.masked_scatter(mask.reshape(mask.shape + (1,) * (value.ndim - 1)), value)
        return cls(spec=spec, lengths=lengths, **padded)

    def to_nested(self, field: str = "embeds") -> Tensor:
        """One field as a torch jagged nested tensor [B, j, ...]; for leaving vistok, few ops exist on it.

        Raises: ValueError if the field is absent.
        """
        packed = self.packed()
        if field not in packed.values:
            raise ValueError(f"to_nested: expected one of {sorted(packed.values)}, got {field!r}")
        lengths = self.valid_lengths
        shortest = int(lengths.min()) if len(self) else 0
        # Without both bounds torch sizes a padded row by the whole of `values`.
        return torch.nested.nested_tensor_from_jagged(
            packed.values[field], packed.cu_seqlens.to(torch.int64), min_seqlen=shortest, max_seqlen=packed.max_len
        )

    def zero_padding(self) -> Self:
        """Set everything behind the valid prefix to zero."""
        mask = self.mask
        zeroed = {
            name: value.masked_fill(~mask.reshape(mask.shape + (1,) * (value.ndim - 2)), 0)
            for name, value in self.token_tensors().items()
        }
        return replace(self, **zeroed)  # type: ignore[arg-type]

    @classmethod
    def cat(cls, items: Sequence[Self]) -> Self:
        """Join batches along B, padded to the longest; `lengths`, `source` and `sizes` are filled in where absent.

        Raises: ValueError if there is no item, if specs differ or if a field is present in some items only.
        """
        if not items:
            raise ValueError("cat: expected at least one TokenTensor, got an empty list")
        spec = items[0].spec
        for other in items:
            if other.spec != spec:
                raise ValueError(f"cat: expected one spec per batch, got {spec} and {other.spec}; bucket by image size")
        longest = max(item.num_slots for item in items)
        names = {name for item in items for name in item.token_tensors()}
        ragged = any(item.lengths is not None or item.num_slots != longest for item in items)
        joined: dict[str, Any] = {
            name: torch.cat([pad_slots(item._filled(name), longest) for item in items])
            for name in _TENSOR_FIELDS
            if name in names
        }
        joined["lengths"] = torch.cat([item.valid_lengths for item in items]) if ragged else None
        return cls(spec=spec, **joined)

    @classmethod
    def from_list(cls, items: Sequence[Self]) -> Self:
        """`cat`, for items that a dataset gave one by one."""
        return cls.cat(items)

    def _filled(self, name: str) -> Tensor:
        value: Tensor | None = getattr(self, name)
        if value is not None:
            return value
        shape = self.anchor.shape[:2]
        if name == "source":
            return torch.arange(shape[1], device=self.device).expand(shape)
        if name == "sizes":
            return torch.ones(shape, device=self.device)
        raise ValueError(f"cat: expected the field {name!r} in all items or in none, got both")

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """Apply `fn` to every tensor that is present."""
        return replace(self, **{name: fn(value) for name, value in self.tensors().items()})  # type: ignore[arg-type]

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Like `Tensor.to`, all forms; a dtype is applied to `embeds` only.

        Raises: TypeError for a dtype that is not floating.
        """
        moved = {name: _move(value, name == "embeds", args, kwargs) for name, value in self.tensors().items()}
        if "embeds" in moved and not moved["embeds"].is_floating_point():
            raise TypeError(f"TokenTensor.to: expected a floating dtype for embeds, got {moved['embeds'].dtype}")
        return replace(self, **moved)  # type: ignore[arg-type]

    def pin_memory(self, *args: Any) -> Self:
        """Pin every tensor; DataLoader calls this."""
        return self.map(lambda value: value.pin_memory(*args))

    def detach(self) -> Self:
        """Cut every tensor from the graph."""
        return self.map(Tensor.detach)

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Rows of the batch by slice, [M] int64 or [B] bool.

        Raises: TypeError for anything else (an int would lose the batch axis: use a slice).
        """
        if not isinstance(rows, slice | Tensor) or (isinstance(rows, Tensor) and rows.ndim != 1):
            given = shape_of(rows) if isinstance(rows, Tensor) else type(rows).__name__
            raise TypeError(f"TokenTensor[...]: expected a slice, [M] int64 or [B] bool, got {given}")
        return self.map(lambda value: value[rows])

    def __iter__(self) -> Iterator[Self]:
        """Items one by one as batches of one, trimmed to their length. Synchronizes with the device."""
        for row in range(len(self)):
            yield self[row : row + 1].trim()


_TENSOR_FIELDS = tuple(field.name for field in fields(TokenTensor) if field.name != "spec")


def _move(value: Tensor, cast: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`value.to(*args, **kwargs)`, with every dtype in the arguments replaced by the value's own unless `cast`."""
    if cast:
        return value.to(*args, **kwargs)
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, value.dtype, *args[1:])
    own: list[Any] = [value.dtype if isinstance(arg, torch.dtype) else arg for arg in args]
    named: dict[str, Any] = {key: value.dtype if key == "dtype" else arg for key, arg in kwargs.items()}
    return value.to(*own, **named)


register_with_torch(TokenTensor, TokenSpec, _TENSOR_FIELDS, (Selection, Assignment, Packed))
