"""Merging of tokens between attention and MLP of every block of a vision tower, by hooks.

P images, T tokens of a block (the class token among them), C. x -> x + attention(x) = y; y is merged to y' in front of
the MLP, its output is given back to every member, and y + MLP(y') is merged behind the block, whose mean is
y' + MLP(y'): what the block would have computed on merged tokens. log(size) goes into the attention of later blocks.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from vistok.lvlm.inputs import as_tokens
from vistok.lvlm.tower import image_numbers
from vistok.ops import bipartite_match, merge, unmerge
from vistok.tokens import Assignment, TokenTensor

Schedule = Callable[[int, int], list[int]]
Targets = Callable[[Assignment], Tensor]


class TowerMerging:
    """While attached, a model's tower gives fewer tokens; `tokens` says which."""

    def __init__(self, model: Any, schedule: Schedule, targets: Targets) -> None:
        """schedule: (patches, blocks) -> tokens that each block merges. targets: token that stands for each slot.

        Raises: ValueError if the model's tower cannot be reached, or gives more than one layer.
        """
        core: Any = getattr(model, "model", None)
        tower: Any = getattr(core, "vision_tower", None)
        stacks = [] if tower is None else [m for m in tower.modules() if isinstance(m, nn.ModuleList)]
        blocks: list[Any] = next((list(stack) for stack in stacks if len(stack) and hasattr(stack[0], "mlp")), [])
        if not blocks or hasattr(core, "pack_image_features"):
            raise ValueError(
                f"prune: expected a LLaVA with one view of each image, as the pruner needs its vision tower to merge "
                f"in, got {type(model).__name__}; merge at the input instead (tome: stage='input')"
            )
        layer = model.config.vision_feature_layer
        if not isinstance(layer, int):
            raise ValueError(f"prune: expected one vision_feature_layer to merge tokens in the tower, got {layer}")
        self._tower, self._projector = tower, core.multi_modal_projector
        if "flash" in self._tower.config._attn_implementation:
            raise ValueError(
                "prune: expected sdpa or eager attention in the vision tower, whose tokens differ in weight"
            )
        # States of layer -1 are what the last block gives, those of -2 what the one before it gives.
        self._blocks = blocks[: len(blocks) + 1 + layer if layer < 0 else layer]
        config = self._tower.config
        self._patches: int = (config.image_size // config.patch_size) ** 2
        self._steps = schedule(self._patches, len(self._blocks))
        self._targets = targets
        self._prefix = 0  # tokens in front of the patches
        self._handles: list[RemovableHandle] = []
        self._keys: Tensor | None = None
        self._pairs: Assignment | None = None
        self._kept: Tensor | None = None
        self._weights: Tensor | None = None

    def tokens(self, features: Sequence[Tensor]) -> TokenTensor:
        """The first N' features [N, D] of M images, which the tower has merged last, with `source` and `sizes`.

        Raises: ValueError if they are of other images.
        """
        owners = image_numbers(features)
        if self._kept is None or self._weights is None or len(self._kept) != max(owners) + 1:
            raise ValueError("prune: expected images to encode, whose tokens the vision tower can merge, got features")
        kept, weights = (value[owners, self._prefix :] for value in (self._kept, self._weights))
        return as_tokens([value[: kept.shape[1]] for value in features]).replace(
            source=kept - self._prefix, sizes=weights
        )

    def attach(self) -> None:
        """Register the hooks."""
        self._handles = [
            self._tower.register_forward_pre_hook(self._begin),
            self._projector.register_forward_hook(self._fill_up),
        ]
        for number, block in enumerate(self._blocks):
            self._handles += [
                block.register_forward_pre_hook(self._enter, with_kwargs=True),
                block.self_attn.k_proj.register_forward_hook(self._remember),
                block.layer_norm2.register_forward_pre_hook(self._match(self._steps[number])),
                block.mlp.register_forward_hook(self._give_back),
                # In front of transformers' own hook, which records what every block gives.
                block.register_forward_hook(self._leave, prepend=True),
            ]

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._keys = self._pairs = self._kept = self._weights = None

    def _fill_up(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        # `generate` counts features to tell whose images are whose.
        return torch.nn.functional.pad(output, (0, 0, 0, self._patches - output.shape[1]))

    def _begin(self, module: nn.Module, args: Any) -> None:
        self._kept = self._weights = self._pairs = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden: Tensor = args[0] if args else kwargs["hidden_states"]
        if self._kept is None or self._weights is None:
            self._prefix = hidden.shape[1] - self._patches
            self._kept = torch.arange(hidden.shape[1], device=hidden.device).expand(hidden.shape[:2])
            self._weights = torch.ones(hidden.shape[:2], device=hidden.device)
            return None
        bias = self._weights.log().to(hidden.dtype)[:, None, None].expand(-1, -1, hidden.shape[1], -1)
        return (hidden,), {name: v for name, v in kwargs.items() if name != "hidden_states"} | {"attention_mask": bias}

    def _remember(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self._keys = output.detach()

    def _match(self, count: int) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
            self._pairs = None
            if not count:
                return None
            hidden, keys = args[0], self._keys
            assert keys is not None and self._weights is not None
            heads = self._blocks[0].self_attn.num_heads
            metric = keys.unflatten(2, (heads, -1)).mean(2)
            self._pairs = bipartite_match(metric, count, protect=self._prefix)
            return (merge(hidden, self._pairs, self._weights).values,)

        return hook

    def _give_back(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        return output if self._pairs is None else unmerge(output, self._pairs)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        pairs, self._pairs = self._pairs, None
        if pairs is None:
            return None
        assert self._kept is not None and self._weights is not None
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        self._kept = self._kept.gather(1, self._targets(pairs))
        merged, self._weights = merge(hidden, pairs, self._weights)
        return (merged, *output[1:]) if isinstance(output, tuple) else merged
