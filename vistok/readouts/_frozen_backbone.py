"""What all readouts share: a backbone that stays in evaluation, takes no gradient and is left out of state dicts."""

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from vistok.readouts._backbones import backbone_of, build_backbone
from vistok.readouts._blocks import UnsupportedBackboneError
from vistok.weights import load_tensors


class FrozenBackbone(nn.Module):
    """A module on a backbone `vit`, of which its state dict holds what takes a gradient: LoRA, adapters, prompts."""

    def __init__(self, vit: nn.Module | Mapping[str, Any], *, backbone_grad: bool = False) -> None:
        """vit: the network, or settings of one. backbone_grad: nothing is frozen, for tuners inside of it.

        Raises: ValueError for settings of nothing; UnsupportedBackboneError for a network that is none.
        """
        super().__init__()
        self.vit: nn.Module = vit if isinstance(vit, nn.Module) else build_backbone(vit)
        self.backbone = backbone_of(self.vit)
        self.backbone_grad = backbone_grad
        if not backbone_grad:
            self.vit.requires_grad_(False)
        self.vit.eval()
        self.register_load_state_dict_pre_hook(_fill_frozen)  # type: ignore[no-untyped-call]

    @property
    def like(self) -> Tensor:
        """Some parameter of the backbone, for its dtype and device."""
        return next(self.vit.parameters())

    def run_backbone(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> all tokens [B, N, D] and the pooled feature [B, P].

        Raises: ValueError for others; UnsupportedBackboneError for a backbone that does not pool.
        """
        if images.ndim != 4 or images.dtype != self.like.dtype:
            raise ValueError(
                f"{type(self).__name__}: expected images [B, 3, H, W] of {self.like.dtype}, as its backbone takes, "
                f"got {list(images.shape)} of {images.dtype}"
            )
        tokens, pooled = self.backbone.run(images)
        if pooled.shape != (len(images), self.backbone.pooled_width):
            raise UnsupportedBackboneError(
                f"{type(self.vit).__name__}: expected one final feature per image, "
                f"{[len(images), self.backbone.pooled_width]}, got {list(pooled.shape)}; give the backbone a pool, as "
                "timm's global_pool='avg' or open_clip's pool_type='tok'"
            )
        return tokens, pooled

    def train(self, mode: bool = True) -> Self:
        """The backbone stays in evaluation: neither dropout nor dropped paths."""
        super().train(mode)
        self.vit.eval()
        return self

    def state_dict(self, *args: Any, full: bool = False, **kwargs: Any) -> Any:
        """What was learned, also inside of the backbone; `full`: all of the backbone."""
        found = super().state_dict(*args, **kwargs)
        if not full:
            for name in _frozen_names(self.vit, f"{kwargs.get('prefix', '')}vit."):
                found.pop(name, None)
        return found

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Names as they are; of `state_dict(full=True)` the frozen backbone goes into `vit` and is left out.

        Raises: ValueError if it does not fit.
        """
        frozen = _frozen_names(self.vit, "vit.")
        given = {name.removeprefix("vit."): value for name, value in tensors.items() if name in frozen}
        if given:
            learned = {name: value for name, value in self.vit.state_dict().items() if f"vit.{name}" not in frozen}
            load_tensors(self.vit, {**learned, **given}, "the backbone of the checkpoint does not fit")
        return {name: value for name, value in tensors.items() if name not in frozen}


def _frozen_names(vit: nn.Module, prefix: str) -> set[str]:
    learned = {f"{prefix}{name}" for name, value in vit.named_parameters() if value.requires_grad}
    return vit.state_dict(prefix=prefix).keys() - learned


def _fill_frozen(module: FrozenBackbone, given: dict[str, Any], prefix: str, *_: Any) -> None:
    """A state dict about to be loaded that has nothing of the frozen backbone means the backbone that is there."""
    own = module.vit.state_dict(prefix=f"{prefix}vit.")
    frozen = _frozen_names(module.vit, f"{prefix}vit.")
    if not any(name in given for name in frozen):
        given.update({name: own[name] for name in frozen})
