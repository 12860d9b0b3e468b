"""What the vision tower of a model knows of its visual tokens: attention, keys, states, the class token.

P crops, T patches, H heads, M images, N tokens, Dk key width, C width of the tower.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.hooks import RemovableHandle

from vistok.lvlm.packing import Packing
from vistok.ops import attention_rows


class TowerSpace(NamedTuple):
    """Visual tokens in front of the projector: states [N, C] of every image, and the projector."""

    states: list[Tensor]
    project: Callable[[Tensor], Tensor]


class TowerWatch:
    """Watches a CLIP or SigLIP tower; what it tells is about the images that were encoded last.

    layer: of whose attention `attention` and `keys` are, -1 for the last.
    """

    def __init__(self, model: Any, layer: int = -1) -> None:
        """Raises: ValueError if the model has no such tower, or the tower no such layer."""
        tower: Any = getattr(getattr(model, "model", None), "vision_tower", None)
        stacks = [] if tower is None else [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
        blocks = [stack for stack in stacks if len(stack) and hasattr(stack[-1], "self_attn")]
        if not blocks:
            raise ValueError(
                f"prune: expected a CLIP or SigLIP tower, whose attention the pruner needs, got that of a "
                f"{type(model).__name__}; choose a setting without (todre: pivot='first')"
            )
        if not -len(blocks[-1]) <= layer < len(blocks[-1]):
            raise ValueError(f"prune: expected tower_layer of a tower of {len(blocks[-1])} layers, got {layer}")
        self._model = model
        self._tower = tower
        self._packing = Packing(model)
        self._attention: Any = blocks[-1][layer].self_attn
        config = tower.config
        self._patches: int = (config.image_size // config.patch_size) ** 2
        self._hidden: Tensor | None = None
        self._projected: Tensor | None = None
        self._first: Tensor | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Register the hooks."""

        def attending(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden = (args[0] if args else kwargs["hidden_states"]).detach()

        def projecting(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._projected = args[0]

        def encoded(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            layer = self._model.config.vision_feature_layer
            states = getattr(output, "hidden_states", None)
            self._first = states[layer][:, :1] if states is not None and isinstance(layer, int) else None

        self._packing.attach()
        self._handles = [
            self._attention.register_forward_pre_hook(attending, with_kwargs=True),
            self._model.model.multi_modal_projector.register_forward_pre_hook(projecting),
            self._tower.register_forward_hook(encoded),
        ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._packing.remove()
        self._handles = []
        self._hidden = self._projected = self._first = None

    @torch.no_grad()
    def attention(self, modality: str, features: Sequence[Tensor]) -> Tensor:
        """[M, N] float32, mean over heads: what the class token attends to, or where there is none all tokens do.

        Raises: ValueError if it is not known which crops are whose, here as below.
        """
        attention, hidden = self._attention, self._seen()
        rows = hidden[:, :1] if self._prefix else hidden
        queries = attention.q_proj(rows).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        keys = attention.k_proj(hidden).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
        mean = attention_rows(queries, keys, scale=attention.scale, image_slice=slice(self._prefix, None)).mean
        return pad_sequence(self._of_tokens(modality, mean.float()[..., None], features), True).squeeze(2)

    @torch.no_grad()
    def keys(self, modality: str, features: Sequence[Tensor]) -> Tensor:
        """[M, N, Dk], mean over heads."""
        keys = self._attention.k_proj(self._seen()[:, self._prefix :])
        mean = keys.unflatten(2, (-1, self._attention.head_dim)).mean(2)
        return pad_sequence(self._of_tokens(modality, mean.float(), features), True)

    def thumbnail(self, features: Sequence[Tensor]) -> Tensor | None:
        """[M, N] bool: the view of the whole image, where images are cut into crops too."""
        if all(len(value) == self._patches for value in features):
            return None
        longest = max(map(len, features))
        first = torch.arange(longest, device=features[0].device) < self._patches
        return first.expand(len(features), -1)

    def space(self, features: Sequence[Tensor]) -> TowerSpace | None:
        """The tokens in front of the projector, None where they are more than its patches."""
        self._seen()
        owners = image_numbers(features)
        if self._projected is None or self._projected.shape[:2] != (max(owners) + 1, len(features[0])):
            return None
        return TowerSpace([self._projected[owner] for owner in owners], self._model.model.multi_modal_projector)

    def class_token(self, features: Sequence[Tensor]) -> Tensor | None:
        """[M, 1, C] in front of the projector, None if the tower has none or `space` is None."""
        if not self._prefix or self._first is None or self.space(features) is None:
            return None
        found: Tensor = self._first[image_numbers(features)]
        return found

    @property
    def _prefix(self) -> int:
        return self._seen().shape[1] - self._patches

    def _seen(self) -> Tensor:
        if self._hidden is None:
            raise ValueError(
                "prune: expected images to encode, of whose attention the pruner needs to know, got features"
            )
        return self._hidden

    def _of_tokens(self, modality: str, values: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """values [P, T, C] as [N, C] of every image."""
        owners = image_numbers(features)
        packed = self._packing.of_tokens(modality, values, max(owners) + 1)
        each = [packed[owner] for owner in owners]
        counts, expected = [len(value) for value in each], [len(value) for value in features]
        if counts != expected:
            raise ValueError(
                f"prune: expected {expected} tokens of the images, the vision tower's patches come to {counts}; prune "
                f"them one by one, or choose a setting that needs no attention"
            )
        return each


def image_numbers(features: Sequence[Tensor]) -> list[int]:
    """The image of every entry: beams repeat an image, not its place in memory."""
    numbers: dict[int, int] = {}
    return [numbers.setdefault(value.data_ptr(), len(numbers)) for value in features]
