"""Attention sinks and massive activations among the tokens of a vision-language model's prompt.

After "Mitigating Attention Sinks and Massive Activations in Audio-Visual Speech Recognition with LLMs" (Anand et al.,
arXiv:2510.22603), which finds both in the middle of prompts, at tokens whose states are close to the first token's.
In each layer l, for each token j:
    attention a_lj = mean over heads and over the rows i >= j that see j of A_lij  (the measure of arXiv:2410.10781),
    even e_j = the same of attention spread evenly, 1 / (tokens that row i sees); a sink where a_lj / e_j >= 5;
    activation m_lj = max_d |h_ljd|; massive where m_lj > 100 and m_lj > 1000 median |h_l|  (arXiv:2402.17762);
    similarity c_lj = cos(h_lj, h_l0), h_l0 the state of the first token.
That a sink gets five times even attention is our bound; the audio-visual paper draws none. B prompts, n tokens, L
layers, D width.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.family import family_of

SINK_FACTOR = 5.0
MASSIVE, MASSIVE_RATIO = 100.0, 1000.0


@dataclass(frozen=True, eq=False)
class TokenStates:
    """valid, visual [B, n] bool; attention, activation, similarity [L, B, n] float32; median [L] float32.

    attention: received, in shares of even attention; activation: the largest |state| behind a layer; median: of all
    |states| there. What stands at padding means nothing.
    """

    valid: Tensor
    visual: Tensor
    attention: Tensor
    activation: Tensor
    similarity: Tensor
    median: Tensor

    def sinks(self, factor: float = SINK_FACTOR) -> Tensor:
        """[L, B, n] bool: tokens that receive at least `factor` times even attention."""
        return (self.attention >= factor) & self.valid

    def massive(self, magnitude: float = MASSIVE, ratio: float = MASSIVE_RATIO) -> Tensor:
        """[L, B, n] bool: tokens with an activation above `magnitude` and above `ratio` times the layer's median."""
        bound = (ratio * self.median).clamp(min=magnitude)
        return (self.activation > bound[:, None, None]) & self.valid

    @property
    def largest_ratio(self) -> float:
        """The largest activation of a visual token in medians of its layer."""
        found = self.activation / self.median[:, None, None]
        return float(found.masked_fill(~self.visual, 0).max())


@torch.no_grad()
def token_states(model: Any, inputs: Mapping[str, Any]) -> TokenStates:
    """What the layers of the language model say about each token of a batch of prompts, in one forward.

    inputs: as the model's processor or `vistok.lvlm.prompting.batches` makes them. Attention runs without fused kernels
    meanwhile, since those show no weights: n^2 numbers a head and layer. Raises: ValueError if the model's class is
    unknown or its layers show no attention.
    """
    placeholders = [getattr(model.config, each.placeholder) for each in family_of(model).modalities.values()]
    ids: Tensor = inputs["input_ids"]
    with _shown_attention(model):
        found = model(**inputs, output_hidden_states=True, output_attentions=True, use_cache=False)
    if not found.attentions or found.attentions[0] is None:
        raise ValueError(f"token_states: expected attention weights of every layer, got none of {type(model).__name__}")
    mask = inputs.get("attention_mask")
    valid = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    visual = torch.isin(ids, torch.tensor(placeholders, device=ids.device))
    states = found.hidden_states[1:]
    layers = [state_measures(hidden, valid) for hidden in states]
    return TokenStates(
        valid,
        visual,
        torch.stack([received_attention(weights, valid) for weights in found.attentions]),
        torch.stack([layer[0] for layer in layers]),
        torch.stack([layer[1] for layer in layers]),
        torch.stack([layer[2] for layer in layers]),
    )


def received_attention(weights: Tensor, valid: Tensor) -> Tensor:
    """Attention each token receives from those that see it, in shares of even attention: [B, n] float32.

    weights [B, H, n, n]: row i attends to column j; valid [B, n] bool.
    """
    seen = torch.ones(weights.shape[-2:], dtype=torch.bool, device=weights.device).tril()
    seen = seen & valid[:, :, None] & valid[:, None, :]
    mean = weights.float().mean(1) * seen
    even = seen / seen.sum(2, keepdim=True).clamp(min=1)
    return mean.sum(1) / even.sum(1).clamp(min=torch.finfo(torch.float32).tiny)


def state_measures(hidden: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest |value| [B, n], cosine to the first valid token [B, n], median |value| of valid tokens []; float32.

    hidden [B, n, D], valid [B, n] bool.
    """
    states = hidden.float()
    first = states[torch.arange(len(states)), valid.int().argmax(1)]
    similarity = torch.nn.functional.cosine_similarity(states, first[:, None], dim=-1)
    return states.abs().amax(-1), similarity, states[valid].abs().median()


@contextmanager
def _shown_attention(model: Any) -> Iterator[None]:
    before = {name: part.config._attn_implementation for name, part in model.named_modules() if _configured(part)}
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        # Parts may have had ways of their own, such as an eager tower under a fused decoder.
        for name, way in before.items():
            model.get_submodule(name).config._attn_implementation = way


def _configured(part: Any) -> bool:
    return getattr(getattr(part, "config", None), "_attn_implementation", None) is not None
