"""VQT with its linear head, whose features can be selected by group lasso (Tu, Mai, Chao, arXiv:2212.03220)."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from vistok.layers.feature_head import FeatureHead
from vistok.readouts._captured import Captured
from vistok.readouts._official_keys import is_official, split_official
from vistok.readouts.vqt import VQT


class VQTClassifier(nn.Module):
    """A linear head on the features of a VQT.

    State dict: `queries`, `wsum`, `head.weight`, `head.bias`, `select_ids`; `full=True` adds the backbone.
    """

    def __init__(self, vqt: VQT, num_classes: int) -> None:
        """Raises: ValueError without classes."""
        super().__init__()
        self.vqt = vqt
        self.head = FeatureHead(vqt.num_features, num_classes).to(vqt.queries)
        self.register_load_state_dict_pre_hook(_enter_parts)  # type: ignore[no-untyped-call]

    @property
    def dead_layers(self) -> list[int]:
        """Blocks whose queries a pruned head does not look at, and which are not worked out therefore."""
        first = int(self.vqt.include_final)
        dead = self.head.dead_groups(self.vqt.groups)
        return [self.vqt.layers[group - first] for group in dead if group >= first]

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] as the backbone takes them -> logits [B, C]."""
        return self.read(self.vqt.capture(images, skip=self._dead()))

    def read(self, captured: Captured) -> Tensor:
        """Logits [B, C] of what `vqt.capture` kept of the images."""
        logits: Tensor = self.head(self.vqt.read(captured, skip=self._dead()).features)
        return logits

    def state_dict(self, *args: Any, full: bool = False, **kwargs: Any) -> Any:
        """What was learned; `full`: the backbone too, under `vit.`."""
        prefix = kwargs.get("prefix", "")
        found = super().state_dict(*args, **kwargs)
        for name in [name for name in found if name.startswith(f"{prefix}vqt.")]:
            found[f"{prefix}{name.removeprefix(f'{prefix}vqt.')}"] = found.pop(name)
        if f"{prefix}head.select_ids" in found:
            found[f"{prefix}select_ids"] = found.pop(f"{prefix}head.select_ids")
        if full:
            found.update(self.vqt.vit.state_dict(prefix=f"{prefix}vit.", keep_vars=kwargs.get("keep_vars", False)))
        return found

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """As `VQT.rename_keys`, with the authors' head; one that was pruned cuts this one to size."""
        found = self.vqt.rename_keys(tensors)
        if is_official(tensors):
            return {**found, **split_official(tensors).head}
        _cut(self.head, found.get("select_ids"))
        return found

    def _dead(self) -> list[int]:
        return self.head.dead_groups(self.vqt.groups)


def _enter_parts(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """From the flat names of a classifier's state dict to those of its parts; a pruned head is cut to size first."""
    for name in [name for name in state_dict if name.startswith(prefix)]:
        own = name.removeprefix(prefix)
        if own == "select_ids":
            state_dict[f"{prefix}head.select_ids"] = state_dict.pop(name)
        elif not own.startswith(("head.", "vqt.")):
            state_dict[f"{prefix}vqt.{own}"] = state_dict.pop(name)
    _cut(module.head, state_dict.get(f"{prefix}head.select_ids"))


def _cut(head: FeatureHead, ids: Tensor | None) -> None:
    if ids is not None and head.select_ids is None:
        head.prune(ids, reset=False)
