"""A loss against attention sinks in the middle of a prompt: states that are not those of the first token.

"Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMs" (Anand et al.,
arXiv:2510.22603) trains with answer loss + lambda * decorrelation, which lowers the cosine similarity of the first
token and all others. Here, over the layers l that are given and the valid tokens j = 1..n-1 of every prompt,
    L = mean_lj cos(h_lj, h_l0)^2:
the square is ours and has its least where both are uncorrelated, not where they point against each other.

Measured on micro_lvlm, whose language model was trained on for 30 steps of 8 scenes with 10 questions each (AdamW 3e-4,
one seed), the loss over the prompt's states behind all eight layers; 448 validation questions, sinks of 28 prompts:

    lambda            L       mean cosine of visual tokens   right     visual tokens that are sinks in some layer
    before training   0.237   0.44                           94.6 %    2.4 %
    0                 0.218   0.42                           94.9 %    2.3 %
    1                 0.005   -0.03                          95.3 %    2.7 %

The states are decorrelated at no cost, and the sinks stay: in this model they show things (`vistok.lvlm.sink_pruning`)
and were less like the first token than others from the start, so that there was no sink of the paper's kind to lose.
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
