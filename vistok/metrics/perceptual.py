"""ST-LPIPS: shift-tolerant learned perceptual distance, AlexNet trunk (Ghildyal & Liu, ECCV 2022, arXiv:2207.13686).

d = sum over layers l of mean over positions of w_l . (f_l(x) / |f_l(x)| - f_l(y) / |f_l(y)|)^2, network and weights
of the package stlpips-pytorch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from vistok.weights import read_tensors

_WEIGHTS = "weights/vST0.0/alex_shift_tolerant.pth"


class StLpips(nn.Module):
    """Frozen distance network: gradients reach the images, never its weights."""

    def __init__(self, network: Any) -> None:
        """network: an stlpips_pytorch LPIPS module with loaded weights."""
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def forward(self, pred: Tensor, target: Tensor) -> Tensor:
        """pred, target [B, 3, H, W] in [-1, 1] -> distance [B] float32, 0 for equal images.

        Raises: ValueError if shapes differ.
        """
        if pred.shape != target.shape or pred.ndim != 4:
            raise ValueError(
                f"st_lpips: expected pred and target of one shape [B, 3, H, W], got {list(pred.shape)} and "
                f"{list(target.shape)}"
            )
        distance: Tensor = self.network(pred.float(), target.float())
        return distance.flatten()

    def train(self, mode: bool = True) -> "StLpips":
        """Stay in evaluation mode: the package's linear heads hold dropout."""
        return super().train(False)


def st_lpips_network() -> StLpips:
    """The ST-LPIPS (AlexNet) distance: (pred, target) in [-1, 1] -> [B].

    Raises: ImportError naming the extra if stlpips-pytorch is absent.
    """
    import_module("torchvision.models")  # before the stubs, so that nothing but the package meets them
    try:
        with _stand_ins(torchsummary="summary", IPython="embed"):
            package = import_module("stlpips_pytorch.stlpips")
    except ImportError as error:
        raise ImportError("ST-LPIPS needs the extra: pip install 'vistok[metrics]' (stlpips-pytorch)") from error
    network = package.LPIPS(net="alex", variant="shift_tolerant", pretrained=False, verbose=False)
    tensors = read_tensors(Path(str(package.__file__)).parent / _WEIGHTS)
    heads = {f"lins.{name[3:]}": value for name, value in tensors.items() if name.startswith("lin")}
    network.load_state_dict(tensors | heads)  # the module lists its heads twice (lin0, lins.0), the file once
    return StLpips(network)


@contextmanager
def _stand_ins(**attribute_of: str) -> Iterator[None]:
    """Empty modules for debugging aids that the package imports, never calls and does not declare."""
    absent = [name for name in attribute_of if name not in sys.modules]
    for name in absent:
        sys.modules[name] = ModuleType(name)
        setattr(sys.modules[name], attribute_of[name], None)
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]
