"""Explainability compressor: Generic Token Compression in Multimodal LLMs from an Explainability Perspective.

arXiv:2506.01097. R~ = softmax over the visual tokens of f(A_v); the K tokens with most R~ stay. A_v [N]: attention of
the decoder's first layer, mean over its heads and over the rows of the instruction, on the visual tokens, so that no
layer has to run; f: five depthwise-separable convolutions along the tokens, 1 -> 32 -> 64 -> 128 -> 256 -> 512
channels, and one of width 1 back to a single channel. It is trained (vistok.train.explain_compressor) to match R, the
relevance of the visual tokens to the answer; one net per language model and modality.
Not told in what we could read of the paper, ours: kernel 5, GELU, no norm, and x = N A_v / sum(A_v) as input, whose
scale does not depend on the number of tokens. No code of the authors is public.
"""

from typing import Any

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.ops.budget import as_selection, best_slots, kept_tokens
from vistok.protocols import Budget
from vistok.pruning._context import refuse_context
from vistok.pruning._ranks import score_ranks
from vistok.registry import register
from vistok.tokens import Selection, TokenTensor


@register
class ExplainCompressor(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """Predicts from first-layer attention which visual tokens will matter to the answer. B items, N token slots."""

    cannot: frozenset[str] = frozenset()
    needs: frozenset[str] = frozenset({"instruction_attention"})

    def __init__(
        self, *, channels: tuple[int, ...] = (32, 64, 128, 256, 512), kernel: int = 5, rescale: bool = True
    ) -> None:
        """channels: width behind each layer; kernel: tokens that a layer sees; rescale: N A / sum(A) as input, or A.

        Raises: ValueError unless there is a layer, widths are positive and the kernel is odd.
        """
        super().__init__()
        if not channels or min(channels) < 1:
            raise ValueError(f"explain_compressor: expected channels >= 1 for one layer or more, got {channels}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"explain_compressor: expected an odd kernel >= 1, got {kernel}")
        self.rescale = rescale
        widths = (1, *channels)
        self.layers = nn.ModuleList(
            SeparableConv(before, after, kernel) for before, after in zip(widths, channels, strict=False)
        )
        self.head = nn.Conv1d(widths[-1], 1, 1)

    def forward(self, attention: Tensor, mask: Tensor | None = None) -> Tensor:
        """attention [B, N] >= 0, mask [B, N] bool (True = valid) or None -> log R~ [B, N] float32, -inf where masked.

        Each item is as if alone: what lies in padding does not matter, and an item without tokens is all -inf.
        """
        mask = torch.ones_like(attention, dtype=torch.bool) if mask is None else mask
        if not attention.shape[1]:
            return attention.float()
        x = self._scaled(attention, mask).to(self.head.weight.dtype)[:, None]
        valid = mask[:, None]
        for layer in self.layers:
            # A bias makes padding other than zero, and the next layer would see it.
            x = layer(x).masked_fill(~valid, 0)
        logits: Tensor = self.head(x).squeeze(1).float().masked_fill(~mask, -torch.inf)
        # The sum over an item without tokens is kept finite: -inf minus -inf is NaN, in the gradient, too.
        scale = logits.masked_fill(~mask.any(1, keepdim=True), 0).logsumexp(1, keepdim=True)
        return logits - scale

    def _scaled(self, attention: Tensor, mask: Tensor) -> Tensor:
        values = attention.float().masked_fill(~mask, 0)
        if not self.rescale:
            return values
        total = values.sum(1, keepdim=True)
        return values * mask.sum(1, keepdim=True) / total.where(total > 0, 1)

    @torch.no_grad()
    def select(
        self, tokens: TokenTensor, budget: Budget, *, instruction_attention: Tensor | None = None, **context: Any
    ) -> Selection:
        """Slots [B, K] ascending; scores are log R~, the lowest slot wins among equals.

        instruction_attention: [B, N], A_v above (`vistok.lvlm.relevance.first_layer_attention`).
        Raises: TypeError for other context; ValueError for a budget out of range, attention missing or misshapen.
        """
        refuse_context("explain_compressor", context, self.needs)
        if instruction_attention is None or instruction_attention.shape != tokens.mask.shape:
            given = "none" if instruction_attention is None else str(list(instruction_attention.shape))
            raise ValueError(
                f"explain_compressor: expected instruction_attention {list(tokens.mask.shape)}, got {given}; "
                "vistok.lvlm.relevance.first_layer_attention works it out"
            )
        slots, counts = kept_tokens(tokens, budget)
        valid = tokens.mask
        scores = self(instruction_attention, valid)
        chosen = as_selection(tokens, best_slots(score_ranks(scores, valid), slots, counts), counts, budget)
        return chosen._replace(scores=scores)


class SeparableConv(nn.Sequential):
    """GELU(pointwise(depthwise(x))) along N: [B, before, N] -> [B, after, N]."""

    def __init__(self, before: int, after: int, kernel: int) -> None:
        super().__init__(
            nn.Conv1d(before, before, kernel, padding=kernel // 2, groups=before),
            nn.Conv1d(before, after, 1),
            nn.GELU(),
        )
