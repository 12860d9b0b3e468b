"""Image towers of open_clip as continuous tokens (Ilharco et al., OpenCLIP; Radford et al., arXiv:2103.00020).

Maps of the chosen layers before the projection into the space shared with text, which is not made for patches.
B images, N tokens, D = channels of all chosen layers together.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import open_clip
import torch
from huggingface_hub import PyTorchModelHubMixin
from open_clip.model import resize_pos_embed
from torch import Tensor, nn

from vistok.config import unknown
from vistok.layers.image_checks import check_finite, check_images
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

# Only the image tower is wanted, but open_clip builds it as part of a whole.
_LEAST_TEXT = {"context_length": 1, "vocab_size": 2, "width": 2, "heads": 1, "layers": 1}
_TEXT = ("transformer.", "token_embedding.", "ln_final.", "text.", "text_decoder.")
_TEXT_WHOLE = {"positional_embedding", "text_projection", "logit_scale", "logit_bias", "attn_mask"}


@register
class OpenClipTower(nn.Module, PyTorchModelHubMixin, library_name="vistok", license="apache-2.0"):
    """The image tower of a model of open_clip; weights from a folder in its layout, local or on the hub, or a file."""

    cannot: frozenset[str] = frozenset({"budget", "decode", "backward", "fullgraph", "any_size"})
    weight_files = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin", "model.safetensors")
    config_files = ("open_clip_config.json", "config.json")

    def __init__(
        self,
        *,
        architecture: str | None = None,
        model: dict[str, Any] | None = None,
        layers: int | Sequence[int] = 1,
        norm: bool = False,
        prefix: bool = False,
        image_size: Sequence[int] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        frozen: bool = True,
        preprocess: dict[str, Any] | None = None,
    ) -> None:
        """architecture: open_clip's name, and what `model` changes in its config; or `model` is the whole config.

        layers: the last n, or ids (-1 is the last). norm: the final norm on each layer. prefix: keep the class token,
        in front. image_size: (H, W) of all images; None: the model's own. mean, std, preprocess: of the weights; None:
        those of OpenAI's models. frozen: no gradients into it. Raises: ValueError for a name or layer that is not
        there, or a norm that is not made for layers.
        """
        super().__init__()
        self.name = "open_clip_tower"
        config = _config(architecture, model or {})
        vision = dict(config["vision_cfg"])
        if image_size is not None:
            vision["image_size"] = [int(side) for side in image_size]
        if "timm_model_name" in vision:  # weights are what the checkpoint holds, and nothing is fetched for a config
            vision["timm_model_pretrained"] = False
        self.net: Any = open_clip.CLIP(
            config["embed_dim"], vision, _LEAST_TEXT, quick_gelu=bool(config.get("quick_gelu"))
        ).visual
        self.net.requires_grad_(not frozen).eval()
        size = vision.get("image_size", 224)
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else (size[0], size[1])
        if hasattr(self.net, "set_input_size"):  # towers of timm are built in their own size
            self.net.set_input_size(self.image_size)
        widths, strides, self._prefix = _layers_of(self.net)
        self.layers = chosen_layers(self.name, layers, len(widths))
        if len({strides[layer] for layer in self.layers}) != 1:
            raise ValueError(f"{self.name}: expected layers of one stride, got {self.layers}")
        if norm and (self._prefix is None or getattr(self.net, "attn_pool", None) is not None):
            raise ValueError(f"{self.name}: expected norm=False, the final norm of this tower is not made for layers")
        self.norm, self.patch = norm, strides[self.layers[0]]
        self.dim = sum(widths[layer] for layer in self.layers)
        self.prefix = (self._prefix or 0) if prefix else 0
        self.stated = mean is not None and std is not None
        self.mean, self.std = list(mean or open_clip.OPENAI_DATASET_MEAN), list(std or open_clip.OPENAI_DATASET_STD)
        if preprocess is None:
            preprocess = picture_settings(self.image_size, 1.0, config.get("resize_mode", "shortest"), "bicubic")
        self.preprocess = fitted(preprocess, self.image_size if image_size is not None else None)

    @property
    def spec(self) -> TokenSpec:
        """What all token-tensors of this tokenizer share; the grid comes with each batch."""
        return TokenSpec(self.name, self.dim, patch=self.patch, image_size=self.image_size, prefix=self.prefix)

    @property
    def dtype(self) -> torch.dtype:
        """What the network computes in."""
        dtype: torch.dtype = next(self.net.parameters()).dtype
        return dtype

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None) -> TokenTensor:
        """images [B, 3, H, W] in [0, 1] of `image_size` -> features, prefix first: embeds [B, N, D].

        Raises: ValueError naming the shape, size or range that is wrong, an image whose features are not finite, or a
        budget: prune the tokens instead.
        """
        if budget is not None:
            raise ValueError(f"{self.name}: expected no budget, an encoder makes h*w tokens; prune them instead")
        check_images(self.name, images)
        check_fixed_size(self.name, images, self.image_size)
        # A model's own switch for tokens (`output_tokens`) changes what its other callers get, so it stays as it is.
        found = self.net.forward_intermediates(
            standardize(images, self.mean, self.std).to(self.dtype),
            indices=self.layers,
            normalize_intermediates=self.norm,
            intermediates_only=True,
            output_fmt="NCHW",
            output_extra_tokens=bool(self.prefix),
        )
        prefix = found.get("image_intermediates_prefix") or [] if self.prefix else []
        tokens = tokens_of_maps(self.spec, found["image_intermediates"], prefix, self.image_size)
        assert tokens.embeds is not None
        check_finite(self.name, tokens.embeds, f"features from {self.dtype}")
        return tokens

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Raises: NotImplementedError, features have no way back to pixels."""
        raise NotImplementedError(f"{self.name}: an image tower is an encoder, it makes no images")

    def rename_keys(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """open_clip's names to ours, without its text tower; the position table is resampled to the image size.

        Raises: ValueError if nobody said how the weights want their pixels.
        """
        if any(name.startswith("net.") for name in tensors):
            return dict(tensors)
        if not self.stated:
            raise ValueError(
                f"{self.name}: expected to know which mean and std the weights were trained with; give mean= and std=, "
                "or a folder with open_clip_config.json"
            )
        theirs = dict(tensors)
        resize_pos_embed(theirs, _Whole(self.net))
        if hasattr(self.net, "trunk"):
            inside = "visual.trunk."
            trunk = {name.removeprefix(inside): theirs.pop(name) for name in list(theirs) if name.startswith(inside)}
            theirs |= {f"{inside}{name}": value for name, value in by_timm(trunk, self.net.trunk).items()}
        return {
            f"net.{name.removeprefix('visual.')}" if name.startswith("visual.") else name: value
            for name, value in theirs.items()
            if not name.startswith(_TEXT) and name not in _TEXT_WHOLE
        }

    @classmethod
    def rename_settings(cls, stored: dict[str, Any]) -> dict[str, Any]:
        """open_clip's config to our settings; ours as they are."""
        if "model_cfg" not in stored:
            return stored
        model, pictures = stored["model_cfg"], stored.get("preprocess_cfg", {})
        settings: dict[str, Any] = {"architecture": None, "model": model}
        if "mean" in pictures and "std" in pictures:
            settings |= {"mean": pictures["mean"], "std": pictures["std"]}
        size = pictures.get("size") or model["vision_cfg"].get("image_size", 224)
        sides = (size, size) if isinstance(size, int) else size[-2:]
        mode, how = pictures.get("resize_mode", "shortest"), pictures.get("interpolation", "bicubic")
        try:
            return {**settings, "preprocess": picture_settings(sides, 1.0, mode, how)}
        except ValueError:  # whoever states preprocess= does not need it, all others are told
            return {**settings, "model": {**model, "resize_mode": mode}, "preprocess": None}

    def train(self, mode: bool = True) -> Self:
        """The network stays in evaluation: no dropped patches, no batch statistics."""
        super().train(mode)
        self.net.eval()
        return self


class _Whole:
    """What open_clip's functions expect around a tower."""

    def __init__(self, visual: nn.Module) -> None:
        self.visual = visual


def _config(architecture: str | None, changes: dict[str, Any]) -> dict[str, Any]:
    """A model's config, the vision part merged key by key."""
    if architecture is None:
        if "vision_cfg" not in changes or "embed_dim" not in changes:
            raise ValueError("open_clip_tower: expected architecture=, or model= with embed_dim and vision_cfg")
        return changes
    known = open_clip.get_model_config(architecture)
    if known is None:
        raise ValueError("open_clip_tower: " + unknown("architecture", architecture, open_clip.list_models()))
    return {**known, **changes, "vision_cfg": {**known["vision_cfg"], **changes.get("vision_cfg", {})}}


def _layers_of(net: Any) -> tuple[list[int], list[int], int | None]:
    """Channels and stride of each layer, and the number of prefix tokens; None for a net of convolutions."""
    trunk = getattr(net, "trunk", None)
    if trunk is not None:
        info = trunk.feature_info
        return (
            [part["num_chs"] for part in info],
            [part["reduction"] for part in info],
            int(getattr(trunk, "num_prefix_tokens", 0)),
        )
    if hasattr(net, "transformer"):
        count = len(net.transformer.resblocks)
        return [net.class_embedding.shape[0]] * count, [net.patch_size[0]] * count, 1
    stem = net.conv1.out_channels
    return [2 * stem, *(8 * stem * 2**stage for stage in range(4))], [4, 4, 8, 16, 32], None
