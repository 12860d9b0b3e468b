"""Averaged weights inside Lightning checkpoints, under the names that latent diffusion's code gives them.

Beside every parameter `encoder.conv_in.weight` such a file holds `model_ema.encoderconv_inweight`: its moving average,
the name without its dots, which the authors' evaluation uses.
"""

from collections import Counter
from collections.abc import Mapping

from torch import Tensor

_PREFIX = "model_ema."
_COUNTERS = {"decay", "num_updates"}


def averaged_weights(tensors: Mapping[str, Tensor], *, ema: bool) -> dict[str, Tensor]:
    """The model's tensors by their plain names, losses left out: averages if `ema` and the file has them.

    Never a mixture: a parameter without an average is left out, and an average without a parameter keeps its own name,
    so that strict loading names both.
    """
    plain = {n: t for n, t in tensors.items() if not n.startswith(("loss.", _PREFIX))}
    averages = {
        name.removeprefix(_PREFIX): value
        for name, value in tensors.items()
        if name.startswith(_PREFIX) and not name.startswith(f"{_PREFIX}loss")
    }
    averages = {name: value for name, value in averages.items() if name not in _COUNTERS}
    if not ema or not averages:
        return plain
    # Names that differ in their dots only have one average between them, which is neither's.
    shared = Counter(_dotless(name) for name in plain)
    full = {_dotless(name): name for name in plain if shared[_dotless(name)] == 1}
    return {full.get(short, f"{_PREFIX}{short}"): value for short, value in averages.items()}


def _dotless(name: str) -> str:
    return name.replace(".", "")
