"""Averaged weights inside Lightning checkpoints, under the names that latent diffusion's code gives them.

Beside every parameter `encoder.conv_in.weight` such a file holds `model_ema.encoderconv_inweight`: its moving average,
the name without its dots, which the authors' evaluation uses.
"""

from collections.abc import Mapping

from torch import Tensor

_PREFIX = "model_ema."
_COUNTERS = {"decay", "num_updates"}


def averaged_weights(tensors: Mapping[str, Tensor], *, ema: bool) -> dict[str, Tensor]:
    """The model's tensors by their plain names, losses left out: averages if `ema` and the file has them.

    Raises: ValueError naming parameters without an average, averages without a parameter and names that are one
    without their dots, so that no mixture of the two is ever loaded.
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
    dotless = {name.replace(".", ""): name for name in plain}
    problems = [f"no average of {name}" for short, name in dotless.items() if short not in averages]
    problems += [f"average {short} of no parameter" for short in averages if short not in dotless]
    if len(dotless) != len(plain):
        problems.append("names that differ in their dots only")
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"averaged weights: expected one for every parameter, got {shown}; ema=False takes the others")
    return {name: averages[short] for short, name in dotless.items()}
