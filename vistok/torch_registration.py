"""What torch must know of the token-tensor: pytree (compile, export, DDP), DataLoader's collate, torch.save.

Under DDP with a static graph an unregistered output gives other gradients on each rank, without an error.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils.data._utils.collate import default_collate_fn_map


def register_with_torch(tokens: Any, spec: Any, fields: Sequence[str], records: Sequence[Any]) -> None:
    """Register the class `tokens` (static class `spec`, tensor `fields`) and the NamedTuple `records`."""

    def flatten(value: Any) -> tuple[list[Any], Any]:
        present = tuple(name for name in fields if getattr(value, name) is not None)
        return [getattr(value, name) for name in present], (present, value.spec)

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], Any]:
        leaves, context = flatten(value)
        return [(pytree.GetAttrKey(name), leaf) for name, leaf in zip(context[0], leaves, strict=True)], context

    def unflatten(leaves: Any, context: Any) -> Any:
        present, its_spec = context
        return tokens(spec=its_spec, **dict(zip(present, leaves, strict=True)))

    def dump_context(context: Any) -> str:
        return json.dumps([context[0], asdict(context[1])])

    def load_context(dumped: str) -> Any:
        present, settings = json.loads(dumped)
        # JSON has no tuples, and a spec with lists is neither hashable nor equal to the one that was saved.
        settings = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
        return tuple(present), spec(**settings)

    def collate(items: Sequence[Any], *, collate_fn_map: Any = None) -> Any:
        return tokens.cat(items)

    pytree.register_pytree_node(
        tokens,
        flatten,
        unflatten,
        serialized_type_name=f"vistok.{tokens.__name__}",
        to_dumpable_context=dump_context,
        from_dumpable_context=load_context,
        flatten_with_keys_fn=flatten_with_keys,
    )
    for record in records:
        pytree._register_namedtuple(record, serialized_type_name=f"vistok.{record.__name__}")
    default_collate_fn_map[tokens] = collate
    torch.serialization.add_safe_globals([tokens, spec])
