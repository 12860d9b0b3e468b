"""Many questions about one picture in one sequence: the picture is run once, and no question sees another.

A sequence is a prefix of P tokens (start, role, visual tokens) and S slots of T tokens, each a question with its
answer. A slot attends to the whole prefix and, causally, to itself; its positions go on from the prefix, so a slot
computes what the model computes for that question alone.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

NAME = "vistok_packed_questions"


def packed_positions(items: int, prefix: int, slots: int, slot_length: int) -> Tensor:
    """Position ids [items, P + S T] int64."""
    own = torch.arange(prefix, prefix + slot_length).repeat(slots)
    return torch.cat((torch.arange(prefix), own)).expand(items, -1)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    *,
    packing: tuple[int, int],
    dropped: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """Attention of packed sequences as transformers asks for it: query [B, H, L, d], key and value [B, G, L, d].

    packing: (P, T). dropped [B, P] bool: tokens of the prefix that no other token sees, as if a pruner had taken them
    away and left the positions of the rest. Returns [B, L, H, d]. Small products in place of one L x L map with a mask:
    on a CPU several times as fast, forward and backward.
    """
    prefix, slot_length = packing
    grouped = (query * scaling).unflatten(1, (key.shape[1], -1))
    shared_key, shared_value = (part[:, :, None, :prefix] for part in (key, value))
    own_key, own_value = (part[:, :, None, prefix:].unflatten(3, (-1, slot_length)) for part in (key, value))
    unseen = _future(prefix, query)
    asked = grouped[..., prefix:, :]
    to_prefix = asked @ shared_key.mT
    if dropped is not None:
        hidden = torch.zeros_like(dropped, dtype=query.dtype).masked_fill(dropped, float("-inf"))[:, None, None, None]
        to_prefix = to_prefix + hidden
        # Its own diagonal stays, or the softmax of a dropped token's row would have nothing to sum to.
        unseen = torch.minimum(unseen, hidden.where(~torch.eye(prefix, dtype=torch.bool, device=query.device), 0.0))
    first = grouped[..., :prefix, :] @ shared_key.mT + unseen
    by_slot = asked.unflatten(3, (-1, slot_length))
    to_prefix = to_prefix.unflatten(3, (-1, slot_length))
    to_own = by_slot @ own_key.mT + _future(slot_length, query)
    weights = torch.cat((to_prefix, to_own), dim=-1).softmax(-1)
    to_prefix, to_own = weights.split((prefix, slot_length), dim=-1)
    rest = to_prefix.flatten(3, 4) @ shared_value + (to_own @ own_value).flatten(3, 4)
    mixed = torch.cat((first.softmax(-1) @ shared_value, rest), dim=3)
    return mixed.flatten(1, 2).transpose(1, 2).contiguous(), None


def _future(length: int, like: Tensor) -> Tensor:
    """[length, length] to add to scores: minus infinity above the diagonal."""
    return torch.full((length, length), float("-inf"), dtype=like.dtype, device=like.device).triu(1)


ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
