"""Memory with poison around every tensor: what reads beside one answers otherwise, what writes beside one is caught."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from vistok.ops.dispatch import Backend

# Numbers on either side; a multiple of every vector's length, so that a tensor is aligned as it would be alone.
_MARGIN = 256
# A tensor that spans more numbers already lies in memory that nobody touches.
_MOST = 1 << 24


class Block(NamedTuple):
    """memory [E]: a tensor and its margins. outside [E] bool: where the margins, and the gaps of its strides, are."""

    memory: Tensor
    outside: Tensor

    @property
    def intact(self) -> bool:
        """Whether every number outside the tensor is still poison."""
        left = self.memory[self.outside]
        return bool((left.isnan() if left.is_floating_point() else left == _poison(left.dtype)).all())


def fenced(tensor: Tensor, blocks: list[Block]) -> Tensor:
    """The same numbers at the same strides amid NaN, or ids far out of range; `blocks` gains the memory."""
    extent = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
    if not tensor.numel() or extent > _MOST:
        return tensor
    memory = torch.full((extent + 2 * _MARGIN,), _poison(tensor.dtype), dtype=tensor.dtype, device=tensor.device)
    outside = torch.ones_like(memory, dtype=torch.bool)
    # An axis that repeats its numbers must be written once.
    once = tuple(slice(None) if step else slice(1) for step in tensor.stride())
    place = (tensor.shape, tensor.stride(), _MARGIN)
    memory.as_strided(*place)[once].copy_(tensor[once])
    outside.as_strided(*place)[once].fill_(False)
    blocks.append(Block(memory, outside))
    return memory.as_strided(*place)


def fence_all(values: Any, blocks: list[Block]) -> Any:
    """Every tensor in nested containers fenced."""
    return tree_map_only(Tensor, lambda tensor: fenced(tensor, blocks), values)


class Fences(TorchDispatchMode):
    """Inside, every new tensor is fenced."""

    def __init__(self, blocks: list[Block]) -> None:
        super().__init__()
        self.blocks = blocks

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_storage(leaf) for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)}
        found = func(*args, **(kwargs or {}))
        return tree_map_only(Tensor, lambda made: made if _storage(made) in given else fenced(made, self.blocks), found)


@contextmanager
def fenced_back_ends(blocks: list[Block]) -> Iterator[None]:
    """Inside, whatever tensor a back end of an op makes is fenced: its copies of inputs, its buffers, its results."""

    def inside(run: Callable[..., Any]) -> Callable[..., Any]:
        def fenced_run(*values: Any) -> Any:
            with Fences(blocks):
                return run(*values)

        return fenced_run

    with ExitStack() as stack:
        for table in _tables():
            guarded = {name: replace(backend, run=inside(backend.run)) for name, backend in table.items()}
            stack.enter_context(patch.dict(table, guarded))
        yield


def _tables() -> list[dict[str, Backend]]:
    """Every mapping from names to back ends in the files of vistok.ops, once."""
    modules = [module for name, module in sys.modules.items() if name.startswith("vistok.ops.")]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, dict) and value]
    tables = {id(value): value for value in found if all(isinstance(item, Backend) for item in value.values())}
    return list(tables.values())


def _poison(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
