"""torch.func.vmap over ops that treat every vector of [..., D] alone: the mapped axis is one more leading axis."""

from typing import Any

from torch import Tensor
from torch._library.custom_ops import CustomOpDef


def batch_in_front(op: CustomOpDef) -> None:
    """Let vmap map over `op`, all items in one call; every tensor it takes and gives must have the leading axes."""

    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        found = op(*(_in_front(arg, dim, info.batch_size) for arg, dim in zip(args, in_dims, strict=True)))
        return found, 0 if isinstance(found, Tensor) else (0,) * len(found)

    op.register_vmap(rule)


def _in_front(arg: Any, dim: Any, size: int) -> Any:
    if not isinstance(arg, Tensor):
        return arg
    return arg.expand(size, *arg.shape) if dim is None else arg.movedim(dim, 0)
