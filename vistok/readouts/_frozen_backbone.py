"""State dicts of readouts: what was learned, without the backbone that it sits on.

A tensor of the backbone belongs to what was learned if it takes a gradient: LoRA, adapters and prompts in its blocks.
"""

from typing import Any

from torch import nn


def without_frozen(found: dict[str, Any], prefix: str, vit: nn.Module) -> None:
    """Drop the tensors of `vit`, kept under `prefix`, that take no gradient, from a state dict."""
    learned = {f"{prefix}{name}" for name, value in vit.named_parameters() if value.requires_grad}
    for name in [name for name in found if name.startswith(prefix) and name not in learned]:
        del found[name]


def fill_frozen(given: dict[str, Any], prefix: str, vit: nn.Module) -> None:
    """Add to a state dict about to be loaded the tensors of `vit` that `without_frozen` had dropped, if all lack."""
    own = vit.state_dict(prefix=prefix)
    without_frozen(learned := dict(own), prefix, vit)
    frozen = own.keys() - learned.keys()
    if not any(name in given for name in frozen):
        given.update({name: own[name] for name in frozen})
