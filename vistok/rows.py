"""Rows of padded batches [B, N, ...] as plain tensors: gather them, scatter them together, tell what can be read.

B items, N token slots, K slots of the result.
"""

from typing import Any

import torch
from torch import Tensor


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Gather rows [B, N, ...] by index [B, K] int64 -> [B, K, ...]; differentiable in `values`."""
    batch, slots = values.shape[:2]
    # index_select on flattened rows is several times faster than gather with an expanded index.
    flat = (index + torch.arange(batch, device=index.device)[:, None] * slots).reshape(-1)
    return values.reshape(batch * slots, *values.shape[2:])[flat].reshape(*index.shape, *values.shape[2:])


def grid_coords(rows: int, cols: int, batch: int = 1, device: torch.device | None = None) -> Tensor:
    """(row, col) of every cell of a grid in raster order: [batch, rows*cols, 2] int32."""
    row, col = torch.meshgrid(
        torch.arange(rows, dtype=torch.int32, device=device),
        torch.arange(cols, dtype=torch.int32, device=device),
        indexing="ij",
    )
    return torch.stack([row, col], dim=-1).reshape(1, rows * cols, 2).expand(batch, -1, -1)


def pad_slots(value: Tensor, slots: int) -> Tensor:
    if value.shape[1] == slots:
        return value
    padding = value.new_zeros((value.shape[0], slots - value.shape[1], *value.shape[2:]))
    return torch.cat([value, padding], dim=1)


def scatter_rows(values: Tensor, slot: Tensor, count: int, how: str) -> Tensor:
    out = values.new_zeros((values.shape[0], count + 1, *values.shape[2:]))
    index = slot.reshape(slot.shape + (1,) * (values.ndim - 2)).expand(values.shape)
    return out.scatter_reduce(1, index, values, how, include_self=False)[:, :count]


def weighted_mean(values: Tensor, sizes: Tensor, total: Tensor, slot: Tensor) -> Tensor:
    wide = torch.promote_types(values.dtype, torch.float32)  # bfloat16 counts to 256 only
    trailing = (1,) * (values.ndim - 2)
    weighted = values.to(wide) * sizes.reshape(sizes.shape + trailing)
    summed = scatter_rows(weighted, slot, total.shape[1], "sum")
    return (summed / total.clamp(min=1e-12).reshape(total.shape + trailing)).to(values.dtype)


def leaders(sizes: Tensor, slot: Tensor, count: int) -> Tensor:
    """Position [B, count] of the largest token of each slot, the lowest among equals, 0 for empty slots."""
    largest = torch.nn.functional.pad(scatter_rows(sizes, slot, count, "amax"), (0, 1))
    position = torch.arange(slot.shape[1], device=slot.device).expand_as(slot)
    wins = sizes == largest.gather(1, slot)
    return scatter_rows(position.where(wins, slot.shape[1]), slot, count, "amin").clamp(max=max(slot.shape[1] - 1, 0))


def has_values(value: Any) -> bool:
    """False for what pytree, fake, meta, vmap and compiler code puts in a tensor's place."""
    plain = type(value) is Tensor and value.device.type != "meta" and not torch.compiler.is_compiling()
    return plain and not torch._C._functorch.is_functorch_wrapped_tensor(value)


def is_readable(value: Tensor) -> bool:
    """Whether a check of its values costs neither a graph break nor a device synchronisation."""
    return has_values(value) and value.device.type == "cpu"


def shape_of(value: Any) -> str:
    return str(list(value.shape)) if isinstance(value, Tensor) else f"({type(value).__name__})"
