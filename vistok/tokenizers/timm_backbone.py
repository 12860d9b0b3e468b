"""Features of any timm backbone as continuous tokens, through its `forward_intermediates` (Wightman, timm 1.0).

images in [0, 1] -> pad below and to the right to a multiple of the layer's stride -> the weights' own mean and std ->
maps of the chosen layers, side by side as channels. Class and register tokens come first, or are left out.
B images, N tokens, D = channels of all chosen layers together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import Any, Self

import timm
import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from vistok.layers.image_checks import check_finite, check_images, pad_to_multiple
from vistok.registry import register
from vistok.tokenizers._features import (
    by_timm,
    check_fixed_size,
    chosen_layers,
    fitted,
    picture_settings,
    standardize,
    tokens_of_maps,
)
from vistok.tokens import TokenSpec, TokenTensor

# Their layers cannot be had behind the final norm.
_WITHOUT_NORM = {"Hiera", "HieraDet"}

# What a folder's config.json must not decide: the head, and which other files are fetched or read.
_NOT_OF_A_FOLDER = {
    "num_classes",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "checkpoint_path",
    "cache_dir",
}


@register
class TimmBackbone(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """A timm model as an encoder; weights from a folder in timm's layout, local or on the hub, or from a lone file."""

    cannot: frozenset[str] = frozenset({"budget", "decode", "backward", "fullgraph"})

    def __init__(
        self,
        *,
        architecture: str,
        layers: int | Sequence[int] = 1,
        norm: bool = False,
        prefix: bool = False,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model: dict[str, Any] | None = None,
        frozen: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """architecture: timm's name, with the tag of its weights. layers: the last n, or ids (-1 is the last).

        norm: the final norm on each layer. prefix: keep class and register tokens, in front. image_size: (H, W) of all
        images, position tables are resampled to it; None: any size where the architecture takes any, else its own.
        mean, std, preprocess: of the weights; None: those that timm knows for the tag. model: more for
        `timm.create_model`. frozen: no gradients into it. Raises: ValueError for a name or layer that is not there.
        """
        super().__init__()
        self.name = "timm_backbone"
        self.architecture = architecture
        self.net, self.image_size = _create(architecture, image_size, dict(model or {}))
        self.net.requires_grad_(not frozen).eval()
        if self.image_size is not None:
            self.cannot = self.cannot | {"any_size"}
        info: Sequence[Mapping[str, Any]] = self.net.feature_info
        self.layers = chosen_layers(self.name, layers, len(info))
        strides = {info[layer]["reduction"] for layer in self.layers}
        if len(strides) != 1:
            raise ValueError(f"{self.name}: expected layers of one stride, got {sorted(strides)} for {self.layers}")
        if norm and type(self.net).__name__ in _WITHOUT_NORM:
            raise ValueError(f"{self.name}: expected norm=False, {architecture} has no final norm for its layers")
        self.norm = norm
        self.patch: int = strides.pop()
        self.dim: int = sum(info[layer]["num_chs"] for layer in self.layers)
        self.prefix = int(getattr(self.net, "num_prefix_tokens", 0)) if prefix else 0
        known = self.net.pretrained_cfg
        self.stated = (mean is not None and std is not None) or "." in architecture
        self.mean, self.std = list(mean or known["mean"]), list(std or known["std"])
        if preprocess is None:
            preprocess = _pictures(known, self.image_size)
        self.preprocess = fitted(preprocess, self.image_size if image_size is not None else None)

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; grid and image size come with each batch."""
        return TokenSpec(self.name, self.dim, patch=self.patch, image_size=self.image_size or (), prefix=self.prefix)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        dtype: torch.dtype = next(self.net.parameters()).dtype
        return dtype

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] -> features, prefix first, then cells in raster order: embeds [B, N, D].

        Raises: ValueError naming the shape, size or range that is wrong, an image whose features are not finite, or a
        budget: prune the tokens instead.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, an encoder makes h*w tokens; prune them instead")
        check_images(self.name, images)
        check_fixed_size(self.name, images, self.image_size)
        padded = pad_to_multiple(images, self.patch)
        maps, prefix = self._maps(standardize(padded, self.mean, self.std).to(self.dtype))
        spec = replace(self.spec, image_size=(images.shape[2], images.shape[3]))
        tokens = tokens_of_maps(spec, maps, prefix, padded.shape[2:])
        assert tokens.embeds is not None
        check_finite(self.name, tokens.embeds, f"features from {self.dtype}")
        return tokens

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Raises: NotImplementedError, features have no way back to pixels."""
        raise NotImplementedError(f"{self.name}: {self.architecture} is an encoder, it makes no images")

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """timm's names to ours, its own filter for the authors' files first, without the classifier.

        Raises: ValueError if nobody said how the weights want their pixels.
        """
        if any(name.startswith("net.") for name in tensors):
            return dict(tensors)
        if not self.stated:
            raise ValueError(
                f"{self.name}: expected to know which mean and std the weights of {self.architecture!r} were trained "
                "with; give mean= and std=, an architecture with its tag, or a folder with timm's config.json"
            )
        theirs = by_timm(tensors, self.net)
        heads = self.net.pretrained_cfg.get("classifier") or ()
        dropped = tuple(f"{head}." for head in ((heads,) if isinstance(heads, str) else heads))
        return {f"net.{name}": value for name, value in theirs.items() if not name.startswith(dropped)}

    @classmethod
    def rename_settings(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """timm's config to our settings; ours as they are."""
        if "pretrained_cfg" not in stored:
            return stored
        known = stored["pretrained_cfg"]
        name = stored["architecture"] + (f".{known['tag']}" if known.get("tag") else "")
        arguments = {key: value for key, value in stored.get("model_args", {}).items() if key not in _NOT_OF_A_FOLDER}
        settings = {"architecture": name, "mean": known["mean"], "std": known["std"], "model": arguments}
        try:
            return {**settings, "preprocess": _pictures(known, None)}
        except ValueError:  # only known here; whoever states preprocess= does not need it, all others are told
            arguments["pretrained_cfg_overlay"] = {"crop_mode": known["crop_mode"]}
            return {**settings, "preprocess": None}

    def train(self, mode: bool = True) -> Self:
        """The network stays in evaluation: no dropped paths, no batch statistics."""
        super().train(mode)
        self.net.eval()
        return self

    def _maps(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """x [B, 3, H, W] -> maps [B, C, h, w] and prefixes [B, P, C] of the chosen layers."""
        asked = {"return_prefix_tokens": True} if self.prefix else {}
        try:
            found = self.net.forward_intermediates(
                x,
                indices=self.layers,
                norm=self.norm,
                stop_early=True,
                output_fmt="NCHW",
                intermediates_only=True,
                **asked,
            )
        except AssertionError as error:
            raise ValueError(f"{self.name}: {self.architecture} refuses {list(x.shape)}: {error}") from error
        pairs = [layer if isinstance(layer, tuple | list) else (layer, None) for layer in found]
        return [pair[0] for pair in pairs], [pair[1] for pair in pairs if pair[1] is not None]


def _create(name: str, size: Sequence[int] | None, arguments: dict[str, Any]) -> tuple[Any, tuple[int, int] | None]:
    """The model without a head, and the one size of images that it takes, or None."""
    if not timm.is_model(name):
        close = get_close_matches(name.partition(".")[0], timm.list_models(), cutoff=0.5)
        raise ValueError(f"timm_backbone: timm has no {name!r}; did you mean {', '.join(close) or 'another'}?")
    arguments = {"num_classes": 0, **arguments}
    if size is not None:
        fixed = (int(size[0]), int(size[1]))
        arguments.pop("img_size", None)  # a folder's own, which the size asked for replaces
        try:
            return timm.create_model(name, **arguments, img_size=fixed), fixed
        except TypeError:  # a convolutional net has no size
            return timm.create_model(name, **arguments), fixed
    if "img_size" not in arguments:
        try:
            return timm.create_model(name, **{"dynamic_img_size": True, **arguments}), None
        except TypeError:  # an architecture that takes any size anyway, or one only
            arguments.pop("dynamic_img_size", None)
    net: Any = timm.create_model(name, **arguments)
    known = net.pretrained_cfg
    native = arguments.get("img_size") or (known["input_size"][1:] if known.get("fixed_input_size") else None)
    sides = (native, native) if isinstance(native, int) else native
    return net, None if sides is None else (int(sides[0]), int(sides[1]))


def _pictures(known: Mapping[str, Any], size: tuple[int, int] | None) -> dict[str, Any]:
    """The pictures that weights want, by what timm keeps beside them."""
    return picture_settings(
        size or known["input_size"][1:],
        known.get("crop_pct") or 1.0,
        known.get("crop_mode") or "center",
        known.get("interpolation") or "bicubic",
    )
