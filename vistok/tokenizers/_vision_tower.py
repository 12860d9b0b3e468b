"""A frozen vision tower as timm, open_clip or transformers build it: images to all tokens of its last block, no norm.

Its weights are part of the tokenizer's own, or are read from a file of their own each time (`weights`) and stored
nowhere else; then what is saved carries their sha256, and is refused beside others. B images, N tokens, C width.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from vistok.weights import fingerprint, load_tensors, read_tensors, stored_settings, weight_file

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
# Parts behind the last block, by the names of the three libraries: not asked for, and not part of SEED's checkpoints.
_AFTER = {"norm", "fc_norm", "head", "head_hidden", "attn_pool", "ln_post", "proj", "post_layernorm"}
# A net, how it makes tokens [B, N, C] of normalised images, and C.
_Built = tuple[nn.Module, Callable[[Any, Tensor], Tensor], int]


class VisionTower(nn.Module):
    """[B, 3, H, W] in [0, 1] -> [B, N, C]. Never trained, whatever mode it is put into.

    It drops nothing, and no gradient reaches it or passes through it to the images, whatever `requires_grad_` says.
    """

    mean: Tensor
    std: Tensor
    digest: Tensor

    def __init__(
        self,
        image_size: int,
        method: str = "timm",
        name: str = "",
        settings: Mapping[str, Any] | None = None,
        weights: str | None = None,
        prefix: str = "",
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
    ) -> None:
        """method: "timm", "open_clip" (name: of a model there) or "transformers" (a CLIP vision model).

        settings: passed on to timm's or open_clip's model, or of a CLIPVisionConfig; for transformers they may be left
        away where a config.json lies beside `weights`. weights: what `vistok.weights.locate` takes; prefix: of the
        tower's keys in that file. Raises: ValueError for another method, a model that gives no tokens, or weights
        that do not fit; FileNotFoundError if there are none.
        """
        super().__init__()
        if method not in _BUILD:
            raise ValueError(f"tower: expected method to be one of {', '.join(_BUILD)}, got {method!r}")
        self.image_size, self.weights = image_size, weights
        given = dict(settings or {}) or (_beside(weights) if method == "transformers" else {})
        self.net, self._tokens, self.width = _BUILD[method](name, image_size, given)
        self.net.requires_grad_(False)
        for key, value in (("mean", mean), ("std", std)):
            self.register_buffer(key, torch.tensor(value)[:, None, None], persistent=False)
        if weights is not None:
            self._read(weights, prefix)
        super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [0, 1], of `image_size` -> [B, N, C]."""
        return self._tokens(self.net, (images - self.mean) / self.std)

    def train(self, mode: bool = True) -> Self:
        """Stay as it is: a frozen tower drops nothing."""
        return self

    def _read(self, weights: str, prefix: str) -> None:
        path = weight_file(weights)
        named = {
            name.removeprefix(prefix): value for name, value in read_tensors(path).items() if name.startswith(prefix)
        }
        found = {name: value for name, value in named.items() if name.partition(".")[0] not in _AFTER}
        on_meta = any(value.is_meta for value in self.net.state_dict().values())
        if on_meta:
            found = {name: value.to("meta") for name, value in found.items()}
        load_tensors(self.net, found, f"{path} does not fit the tower (its keys begin with {prefix!r})")
        digest = bytes(32) if on_meta else bytes.fromhex(fingerprint(self.net, {}))
        self.register_buffer("digest", torch.tensor(list(digest), dtype=torch.uint8))
        _keep_out_of_checkpoints(self.net)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        given = state_dict.get(f"{prefix}digest")
        known = self.weights is not None and given is not None and not (given.is_meta or self.digest.is_meta)
        if known and given is not None and not torch.equal(given.cpu(), self.digest.cpu()):
            raise ValueError(f"tower: expected the weights that this checkpoint was made with, got {self.weights}")
        super()._load_from_state_dict(state_dict, prefix, *rest)


def _keep_out_of_checkpoints(net: nn.Module) -> None:
    """Parameters and buffers become buffers that state_dict() leaves out; they move and change dtype as before."""
    for module in net.modules():
        for name, value in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            delattr(module, name)
            module.register_buffer(name, value.detach(), persistent=False)


def _timm(name: str, image_size: int, settings: Mapping[str, Any]) -> _Built:
    import timm

    try:
        net = timm.create_model(name, num_classes=0, **{"img_size": image_size, **settings})
    except TypeError as error:  # a model that is no transformer has no img_size, for one
        raise ValueError(
            f"tower: expected a vision transformer and its settings, timm's {name} says: {error}"
        ) from error
    return _of_timm(net, f"timm's {name}")


def _of_timm(net: Any, owner: str) -> _Built:
    if not hasattr(net, "blocks") or not hasattr(net, "norm"):
        raise ValueError(f"tower: expected a vision transformer, {owner} has no blocks whose tokens could be taken")
    for after in _AFTER:
        if isinstance(getattr(net, after, None), nn.Module):
            setattr(net, after, nn.Identity())
    return net, lambda net, images: net.forward_features(images), int(net.num_features)


def _open_clip(name: str, image_size: int, settings: Mapping[str, Any]) -> _Built:
    import open_clip

    device = torch.get_default_device()
    given = {"force_image_size": image_size, "pretrained_text": False, **settings}
    clip: Any = open_clip.create_model(name, device=device, load_weights=False, **given)
    visual = clip.visual
    if hasattr(visual, "trunk"):
        return _of_timm(visual.trunk, f"open_clip's {name}")
    if not hasattr(visual, "ln_post") or not hasattr(visual, "forward_intermediates"):
        raise ValueError(f"tower: expected a vision transformer, open_clip's {name} has no tokens that could be taken")
    visual.proj = None
    visual.ln_post = nn.Identity()

    def tokens(net: Any, images: Tensor) -> Tensor:
        found = net.forward_intermediates(
            images, indices=1, intermediates_only=True, output_fmt="NLC", output_extra_tokens=True
        )
        return torch.cat([found["image_intermediates_prefix"][0], found["image_intermediates"][0]], 1)

    return visual, tokens, int(visual.conv1.out_channels)


def _transformers(name: str, image_size: int, settings: Mapping[str, Any]) -> _Built:
    from transformers import CLIPVisionConfig, CLIPVisionModel

    config: Any = CLIPVisionConfig(**{**settings, "image_size": image_size})
    net: Any = CLIPVisionModel(config)
    del net.post_layernorm

    def tokens(net: Any, images: Tensor) -> Tensor:
        hidden: Tensor = net.encoder(inputs_embeds=net.pre_layrnorm(net.embeddings(images))).last_hidden_state
        return hidden

    return net, tokens, int(config.hidden_size)


def _beside(weights: str | None) -> dict[str, Any]:
    """The CLIPVisionConfig in the config.json of a vision model, or of a language model with such a tower."""
    stored = {} if weights is None else stored_settings(weights)
    found: dict[str, Any] = stored.get("vision_config", stored)
    if found.get("model_type") != "clip_vision_model":
        raise ValueError(
            "tower: expected settings of a CLIPVisionConfig, or weights beside a config.json that has them, got neither"
        )
    return found


_BUILD: dict[str, Callable[[str, int, Mapping[str, Any]], _Built]] = {
    "timm": _timm,
    "open_clip": _open_clip,
    "transformers": _transformers,
}
