"""What a readout asks of a backbone: its blocks, its sizes, and one forward to all tokens and the pooled feature.

timm's VisionTransformer and its relatives, and the image towers of open_clip. B images, N tokens, D width.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import open_clip
import timm
from open_clip.transformer import VisionTransformer as OpenClipViT
from torch import Tensor, nn

from vistok.readouts._blocks import UnsupportedBackboneError

# Only the image tower is wanted, but open_clip builds it as part of a whole.
_LEAST_TEXT = {"context_length": 1, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}


class Backbone(Protocol):
    """width D of tokens, pooled_width of the final feature, patch: pixels per patch (height, width).

    embedded: the module whose output is the tokens with their positions, before any block. prefix: class and register
    tokens, which come first; the very first is the class token where `has_class_token`.
    """

    width: int
    pooled_width: int
    patch: tuple[int, int]
    embedded: nn.Module
    prefix: int
    has_class_token: bool

    @property
    def blocks(self) -> list[nn.Module]:
        """All blocks in order, as they are now."""
        ...

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> all tokens [B, N, D] and the pooled feature [B, pooled_width]."""
        ...


def build_backbone(settings: Mapping[str, Any]) -> nn.Module:
    """A backbone of settings, with random weights unless they say `pretrained`.

    architecture: timm's name; all else goes to `timm.create_model`. Or open_clip: its name of a model; all else changes
    the vision part of that model's config. Raises: ValueError for neither, both, or a name that is not there.
    """
    rest = dict(settings)
    tower, architecture = rest.pop("open_clip", None), rest.pop("architecture", None)
    if (tower is None) == (architecture is None):
        raise ValueError(f"backbone: expected architecture= (timm) or open_clip=, got {sorted(settings)}")
    if architecture is not None:
        if not timm.is_model(architecture):
            raise ValueError(f"backbone: timm has no {architecture!r}; `timm.list_models()` names all")
        net: nn.Module = timm.create_model(architecture, **{"num_classes": 0, **rest})
        return net
    config = open_clip.get_model_config(tower)
    if config is None:
        raise ValueError(f"backbone: open_clip has no {tower!r}; `open_clip.list_models()` names all")
    vision = {**config["vision_cfg"], **rest}
    quick = bool(config.get("quick_gelu"))
    visual: nn.Module = open_clip.CLIP(config["embed_dim"], vision, _LEAST_TEXT, quick_gelu=quick).visual
    return visual


def backbone_of(vit: nn.Module) -> Backbone:
    """The adapter that fits a network. Raises: UnsupportedBackboneError naming its class and what it lacks."""
    if isinstance(vit, OpenClipViT):
        return _OpenClipTower(vit)
    trunk = getattr(vit, "trunk", None)
    net: Any = vit if trunk is None else trunk
    lacks = [name for name in ("blocks", "forward_features", "forward_head", "patch_embed") if not hasattr(net, name)]
    if lacks or not isinstance(net.blocks, nn.Sequential | nn.ModuleList):
        raise UnsupportedBackboneError(
            f"{type(net).__name__}: expected a timm VisionTransformer or an open_clip tower, but it has no "
            f"{', '.join(lacks) or 'plain list of blocks'}"
        )
    return _TimmVit(net)


class _TimmVit:
    def __init__(self, vit: Any) -> None:
        self.vit = vit
        self.width: int = vit.embed_dim
        self.pooled_width: int = vit.num_features
        patch = vit.patch_embed.patch_size
        self.patch: tuple[int, int] = (patch, patch) if isinstance(patch, int) else (patch[0], patch[1])
        self.embedded: nn.Module = vit.pos_drop
        self.prefix = int(vit.num_prefix_tokens)
        self.has_class_token: bool = getattr(vit, "cls_token", None) is not None

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.vit.blocks)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.vit.forward_features(images)
        return features, self.vit.forward_head(features, pre_logits=True)


class _OpenClipTower:
    def __init__(self, vit: Any) -> None:
        if not vit.transformer.batch_first:
            raise UnsupportedBackboneError(f"{type(vit).__name__}: expected a tower with batch_first=True")
        self.vit = vit
        self.width: int = vit.conv1.out_channels
        self.pooled_width: int = self.width if vit.proj is None else vit.proj.shape[1]
        self.patch: tuple[int, int] = tuple(vit.patch_size)
        self.embedded: nn.Module = vit.patch_dropout
        self.prefix, self.has_class_token = 1, True

    @property
    def blocks(self) -> list[nn.Module]:
        return list(self.vit.transformer.resblocks)

    def run(self, images: Tensor) -> tuple[Tensor, Tensor]:
        seen: list[Tensor] = []

        def keep(_module: nn.Module, _args: Any, tokens: Tensor) -> None:
            seen.append(tokens)

        handle = self.vit.transformer.register_forward_hook(keep)
        try:
            pooled = self.vit(images)
        finally:
            handle.remove()
        # A tower may be told to return its tokens beside the feature, for other callers.
        return seen[0], pooled[0] if isinstance(pooled, tuple) else pooled
