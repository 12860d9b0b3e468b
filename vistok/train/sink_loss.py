"""A loss against attention sinks in the middle of a prompt: states that are not those of the first token.

"Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMs" (Anand et al.,
arXiv:2510.22603) trains with answer loss + lambda * decorrelation, which lowers the cosine similarity of the first
token and all others. Here, over the layers l that are given and the valid tokens j = 1..n-1 of every prompt,
    L = mean_lj cos(h_lj, h_l0)^2:
the square is ours and has its least where both are uncorrelated, not where they point against each other. Measured on
56 prompts of micro_lvlm: the mean cosine of visual tokens to the first one is 0.18, 0.24, 0.45, 0.52, 0.54, 0.54, 0.55
and 0.44 behind its eight layers, 0.75 at most. `vistok.lvlm.sinks` finds the sinks that the loss is against.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def decorrelation_loss(hidden: Tensor | Sequence[Tensor], valid: Tensor | None = None) -> Tensor:
    """hidden: [B, n, D] of one layer or of several; valid [B, n] bool, None: all tokens -> [] float32, 0..1.

    The first token is the first valid one of each prompt, which may be padded on either side. Gradients flow into both.
    Raises: ValueError for no layers, shapes that do not belong together, or prompts of fewer than two tokens.
    """
    layers = [hidden] if isinstance(hidden, Tensor) else list(hidden)
    if not layers or any(layer.ndim != 3 or layer.shape != layers[0].shape for layer in layers):
        raise ValueError(
            f"decorrelation_loss: expected states [B, n, D] of at least one layer, all alike, got "
            f"{[list(layer.shape) for layer in layers]}"
        )
    shape = layers[0].shape[:2]
    valid = torch.ones(shape, dtype=torch.bool, device=layers[0].device) if valid is None else valid
    if valid.shape != shape or bool((valid.sum(1) < 2).any()):
        raise ValueError(
            f"decorrelation_loss: expected valid {list(shape)} with at least two tokens a prompt, got "
            f"{list(valid.shape)} with {valid.sum(1).tolist()} tokens"
        )
    first = valid.int().argmax(1)
    rows = torch.arange(len(valid), device=valid.device)
    others = valid.clone()
    others[rows, first] = False
    terms = []
    for layer in layers:
        states = layer.float()
        cosine = torch.nn.functional.cosine_similarity(states, states[rows, first][:, None], dim=-1)
        terms.append(cosine[others].square().mean())
    return torch.stack(terms).mean()
