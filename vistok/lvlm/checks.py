"""What cannot be pruned says so before the first token."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from vistok.lvlm.family import Family

ATTENTIONS = ("sdpa", "eager", "flash_attention_2", "flash_attention_3")


def check_model(model: nn.Module) -> None:
    """Raise ValueError for a compiled model."""
    if type(model).__name__ == "OptimizedModule":
        raise ValueError("prune: expected a model that is not compiled; give the module inside (model._orig_mod)")


def check_decoder(decoder: nn.Module) -> None:
    """Raise ValueError for a decoder whose layers or attention cannot lose tokens on the way."""
    config: Any = decoder.config
    kinds = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    if kinds:
        raise ValueError(f"prune: expected full attention in all layers, got {', '.join(sorted(kinds))}")
    attention = config._attn_implementation
    if attention not in ATTENTIONS:
        raise ValueError(
            f"prune: expected attention {' or '.join(ATTENTIONS)}, got {attention!r}; "
            f"call model.set_attn_implementation('sdpa')"
        )


def check_call(arguments: Mapping[str, Any], cache: Any) -> None:
    """Raise ValueError for settings of `generate` or `forward` under which tokens cannot be dropped."""
    if torch.compiler.is_compiling():
        raise ValueError("prune: expected a forward that is not compiled; prune decides while it runs")
    if cache is not None and type(cache) is not DynamicCache:
        raise ValueError(
            f"prune: expected a DynamicCache, whose layers may differ in length, got {type(cache).__name__}; leave "
            f"cache_implementation at its default"
        )
    mask = arguments.get("attention_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
        given = list(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
        raise ValueError(f"prune: expected attention_mask [B, n], got {given}")


def check_prefill(arguments: Mapping[str, Any], cache: Any) -> None:
    """Raise ValueError for a prompt that does not arrive in one piece, or of which more than the last row is wanted."""
    ids = arguments.get("input_ids")
    ids = arguments.get("inputs_embeds") if ids is None else ids
    mask = arguments.get("attention_mask")
    if not isinstance(ids, Tensor):
        raise ValueError("prune: expected input_ids [B, n]")
    if isinstance(mask, Tensor) and mask.shape[1] != ids.shape[1]:
        raise ValueError(
            f"prune: expected the whole prompt of {mask.shape[1]} tokens in one forward, got {ids.shape[1]}; leave "
            f"prefill_chunk_size unset"
        )
    rows = arguments.get("logits_to_keep", 0)
    if isinstance(rows, Tensor) or (cache is not None and rows not in (None, 0, 1)):
        raise ValueError(
            f"prune: expected logits_to_keep 0 or 1 while the prompt runs, got {rows!r}; assisted decoding and chosen "
            f"rows need every token of the prompt"
        )
    if arguments.get("shift_labels") is not None:
        raise ValueError("prune: expected labels, which are cut with the tokens, got shift_labels")


def check_continuation(arguments: Mapping[str, Any], family: Family | None, *, behind_prompt: bool) -> None:
    """Raise ValueError for what cannot follow in a cache whose layers differ in length.

    behind_prompt: nothing has followed the prompt yet.
    """
    pixels = [] if family is None else [modality.pixels for modality in family.modalities.values()]
    new = arguments.get("input_ids")
    new = arguments.get("inputs_embeds") if new is None else new
    several = isinstance(new, Tensor) and new.shape[1] > 1
    images = any(arguments.get(name) is not None for name in pixels) or bool(arguments.get("mm_encoder_outputs"))
    if images or (several and behind_prompt):
        raise ValueError(
            "prune: expected the prompt and its images in one forward, got more of them on top of its cache; leave "
            "prefill_chunk_size unset, and start new images without a cache"
        )
    if arguments.get("logits_to_keep") not in (None, 0, 1):
        raise ValueError("prune: expected one new token at a time, got candidates; assisted decoding is not supported")
