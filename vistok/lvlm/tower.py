"""How much the tokens of an image are attended to in the vision tower's last layer. P crops, T tokens, H heads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from vistok.ops import attention_rows


class TowerAttention:
    """Watches a CLIP or SigLIP tower; `of(features)` is about the images that it encoded last."""

    def __init__(self, model: Any) -> None:
        """Raises: ValueError if the model has no such tower."""
        tower = getattr(getattr(model, "model", None), "vision_tower", None)
        stacks = [] if tower is None else [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
        blocks = [stack for stack in stacks if len(stack) and hasattr(stack[-1], "self_attn")]
        if not blocks:
            raise ValueError(
                f"prune: expected a CLIP or SigLIP tower, whose attention the pruner needs, got that of a "
                f"{type(model).__name__}; choose a setting without (todre: pivot='first')"
            )
        self._attention: Any = blocks[-1][-1].self_attn
        config: Any = tower.config  # type: ignore[union-attr]
        self._patches = (config.image_size // config.patch_size) ** 2
        self._hidden: Tensor | None = None
        self._handle: RemovableHandle | None = None

    def attach(self) -> None:
        """Register the hook."""

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden = (args[0] if args else kwargs["hidden_states"]).detach()

        self._handle = self._attention.register_forward_pre_hook(hook, with_kwargs=True)

    def remove(self) -> None:
        """Remove the hook."""
        if self._handle is not None:
            self._handle.remove()
        self._handle = self._hidden = None

    def of(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """Attention [M, N] and, where images are cut into crops, thumbnail [M, N] bool, outside of which it is 0.

        Raises: ValueError if it is not known which crops are whose.
        """
        if self._hidden is None:
            raise ValueError(
                "prune: expected images to encode, of whose attention the pruner needs to know, got features"
            )
        # Beams repeat an image, not its place in memory.
        numbers: dict[int, int] = {}
        owners = [numbers.setdefault(value.data_ptr(), len(numbers)) for value in features]
        crops = len(self._hidden) / len(numbers)
        whole = all(len(value) == self._patches for value in features)
        if crops != int(crops) or (crops > 1) == whole or len({len(value) for value in features}) > 1:
            raise ValueError(
                f"prune: expected images of one size, each with as many crops, got {len(self._hidden)} crops of "
                f"{len(numbers)} images; prune them one by one, or choose a setting that needs no attention"
            )
        maps = self._maps()[:: int(crops)][torch.tensor(owners, device=self._hidden.device)]
        padded = pad_sequence([row.new_zeros(len(value)) for row, value in zip(maps, features, strict=True)], True)
        padded[:, : self._patches] = maps
        if crops == 1:
            return padded, None
        return padded, (torch.arange(padded.shape[1], device=padded.device) < self._patches).expand_as(padded)

    @torch.no_grad()
    def _maps(self) -> Tensor:
        """[P, T] float32, mean over heads: what the CLS token attends to, or where there is none all tokens do."""
        assert self._hidden is not None
        attention, hidden = self._attention, self._hidden
        prefix = hidden.shape[1] - self._patches
        rows = hidden[:, :1] if prefix else hidden
        queries = attention.q_proj(rows).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        keys = attention.k_proj(hidden).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        mean = attention_rows(queries, keys, scale=attention.scale, image_slice=slice(prefix, None)).mean
        return mean.float()
