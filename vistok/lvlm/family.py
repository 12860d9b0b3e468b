"""The model classes that can be pruned: one line each, and how to find their parts."""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn


class Modality(NamedTuple):
    """One kind of visual input: its placeholder in `config`, its features call and that call's first argument."""

    placeholder: str
    features: str
    pixels: str


IMAGE = Modality("image_token_id", "get_image_features", "pixel_values")
VIDEO = Modality("video_token_id", "get_video_features", "pixel_values_videos")


@dataclass(frozen=True)
class Family:
    """What differs between classes: modalities by their key in `mm_encoder_outputs`; mrope: positions have three axes.

    stacked: modalities whose features are one tensor [V, N, D], not a list of [N_i, D].
    """

    modalities: Mapping[str, Modality] = field(default_factory=lambda: {"image": IMAGE})
    mrope: bool = False
    stacked: frozenset[str] = frozenset()


BOTH = {"image": IMAGE, "video": VIDEO}
FAMILIES = {
    "LlavaForConditionalGeneration": Family(),
    "LlavaNextForConditionalGeneration": Family(),
    "LlavaOnevisionForConditionalGeneration": Family(BOTH, stacked=frozenset({"video"})),
    "Qwen2VLForConditionalGeneration": Family(BOTH, mrope=True),
    "Qwen2_5_VLForConditionalGeneration": Family(BOTH, mrope=True),
}


def family_of(model: nn.Module) -> Family:
    """The family of a model, by the names of its class and of the classes it derives from.

    Raises: ValueError naming the classes there are.
    """
    for kind in type(model).__mro__:
        if kind.__name__ in FAMILIES:
            return FAMILIES[kind.__name__]
    raise ValueError(
        f"prune: expected a model of class {', '.join(FAMILIES)}, got {type(model).__name__}; for another class give "
        f"`visual=`, the mask [B, n] of its visual tokens, and a pruner between layers"
    )


def decoder_of(model: nn.Module) -> nn.Module:
    """The module that owns the decoder layers: the model's language model, or the model itself.

    Raises: ValueError if there is none.
    """
    for candidate in (model, getattr(model, "model", None)):
        for owner in (getattr(candidate, "language_model", None), candidate):
            if isinstance(owner, nn.Module) and isinstance(getattr(owner, "layers", None), nn.ModuleList):
                return owner
    raise ValueError(f"prune: expected a model with decoder layers, found none in {type(model).__name__}")


def call_arguments(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of one forward call by name; the names of `**kwargs` among them."""
    if not args:
        return dict(kwargs)
    bound = inspect.signature(type(model).forward).bind_partial(model, *args, **kwargs).arguments
    named: dict[str, Any] = dict(bound)
    named.pop("self")
    rest: dict[str, Any] = named.pop("kwargs", {})
    return named | rest


def visual_features(model: Any, family: Family, inputs: Mapping[str, Any]) -> dict[str, list[Tensor]]:
    """Projected features of every image [N_i, D], by modality, in the order of their placeholders.

    Taken from `mm_encoder_outputs` where the caller has them, else computed as the model's own forward would.
    """
    given = inputs.get("mm_encoder_outputs") or {}
    found = {}
    for name, modality in family.modalities.items():
        if given.get(name) is not None:
            found[name] = list(given[name].pooler_output)
        elif inputs.get(modality.pixels) is not None:
            call = getattr(model.model, modality.features)
            takes = inspect.signature(call).parameters
            options = {key: value for key, value in inputs.items() if key in takes and key != modality.pixels}
            found[name] = list(call(inputs[modality.pixels], return_dict=True, **options).pooler_output)
    return found
