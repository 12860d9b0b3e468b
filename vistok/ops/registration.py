"""How an op becomes one of torch.library: a name that compiled graphs, profilers and vmap know, over a body of ours.

torch.library.custom_op says the same in one decorator, but imports torch._dynamo at the first call of any op: more than
a second in every process, and an empty folder left beside the system's temporary files.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch._ops import OpOverload


def define_op(
    name: str,
    body: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
) -> OpOverload:
    """Register `body` as the op `name` ("vistok::..."), its schema read from the annotations, and return the op.

    body: runs on every device, outside autograd; what it returns shares no memory with what it takes. fake: empty
    tensors of the same shapes and dtypes. backward, setup_context: as of torch.library.register_autograd; without them
    a gradient that reaches the op raises RuntimeError. torch.func.vmap calls the op item by item, so that each item's
    own back end computes it.
    """
    schema = torch.library.infer_schema(body, mutates_args=())
    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", _untraced(body))
    torch.library.register_fake(name, fake)
    torch.library.register_autograd(name, backward or _refusal(name), setup_context=setup_context)
    namespace, _, stem = name.partition("::")
    op: OpOverload = getattr(getattr(torch.ops, namespace), stem).default
    torch.library.register_vmap(name, _item_by_item(op))
    return op


def _untraced(body: Callable[..., Any]) -> Callable[..., Any]:
    """`body`, hidden from torch.compile wherever it has been imported: traced, pointers to tensors mean nothing."""
    hidden = _disable_dynamo(body)

    def kernel(*args: Any) -> Any:
        return hidden(*args) if "torch._dynamo" in sys.modules else body(*args)

    return kernel


def _refusal(name: str) -> Callable[..., Any]:
    def refuse(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(f"{name}: has no gradient, but one is asked of it; expected its inputs detached")

    return refuse


def _item_by_item(op: OpOverload) -> Callable[..., tuple[Any, Any]]:
    def rule(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        if not info.batch_size:
            raise ValueError("vmap: expected at least one item to map over, got none")
        # A dim is None for what is not mapped, and a list of that for a list.
        given = list(zip(args, in_dims, strict=True))
        items = [
            op(*(arg.select(dim, item) if isinstance(dim, int) else arg for arg, dim in given))
            for item in range(info.batch_size)
        ]
        if isinstance(items[0], Tensor):
            return torch.stack(items), 0
        return tuple(map(torch.stack, zip(*items, strict=True))), (0,) * len(items[0])

    return rule
