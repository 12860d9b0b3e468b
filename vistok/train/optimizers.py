"""Optimizers by name: AdamW for all, or Muon for the matrices of transformer blocks and AdamW for the rest; their step.

A run has one optimizer or two, which share the rate and the limit of the gradient.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """AdamW (0.9, 0.95); vectors and biases do not decay."""
    return [_adamw(list(model.named_parameters()), learning_rate, weight_decay)]


def muon(model: nn.Module, learning_rate: float, weight_decay: float) -> list[Optimizer]:
    """Muon (Jordan et al. 2024) for matrices of blocks, scaled to AdamW's step size, and AdamW for the rest.

    Blocks are what lies below `transformer`, `blocks`, `res_blocks` or, in language models of transformers, `layers`.

    Raises: ValueError if this torch has no Muon.
    """
    if not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer muon: expected torch >= 2.9, got {torch.__version__}; use adamw")
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if _in_blocks(name) and parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    build: Any = torch.optim.Muon
    of_blocks: Optimizer = build(matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
    return [of_blocks, _adamw([pair for pair in named if id(pair[1]) not in chosen], learning_rate, weight_decay)]


def _in_blocks(name: str) -> bool:
    return any(part in f".{name}" for part in (".transformer.", ".blocks.", ".res_blocks.", ".layers."))


def _adamw(named: list[tuple[str, nn.Parameter]], learning_rate: float, weight_decay: float) -> Optimizer:
    trained = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    decays = [parameter for name, parameter in trained if parameter.ndim > 1 and not name.endswith("bias")]
    stays = [parameter for name, parameter in trained if parameter.ndim <= 1 or name.endswith("bias")]
    groups = [{"params": decays, "weight_decay": weight_decay}, {"params": stays, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, learning_rate, (0.9, 0.95), fused=True)


OPTIMIZERS: dict[str, Callable[[nn.Module, float, float], list[Optimizer]]] = {"adamw": adamw, "muon": muon}


def warm_cosine(rate: float, step: int, steps: int, warmup: int, floor: float = 0.0) -> float:
    """The rate of a step: up on a line over `warmup` steps, and half a cosine from `rate` to `floor` times it."""
    cosine = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / steps)))
    return rate * min(1.0, (step + 1) / max(1, warmup)) * cosine


def update(
    optimizers: Sequence[Optimizer], loss: Tensor, parameters: Iterable[nn.Parameter], rate: float, clip: float
) -> Tensor:
    """One step of all optimizers at `rate` down the gradient of loss, cut at norm `clip`; returns the norm before."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers:
        optimizer.step()
    return norm


def restore(optimizers: Sequence[Optimizer], states: Sequence[dict[str, Any]]) -> None:
    """Give each optimizer its state of a checkpoint. Raises: ValueError if there are more of one than of the other."""
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(state)
