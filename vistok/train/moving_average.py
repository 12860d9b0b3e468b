"""Moving average of weights, as torch's AveragedModel takes it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def moving_average(decay: float) -> Callable[[Any, Any, Any], None]:
    """For `AveragedModel(multi_avg_fn=...)`: average <- decay average + (1 - decay) weights."""

    def update(averages: Any, values: Any, count: Tensor) -> None:
        # A short memory at first, or the random start would still weigh 37 % after 1 / (1 - decay) steps.
        keep = min(decay, float((1 + count) / (10 + count)))
        torch._foreach_lerp_(averages, values, 1 - keep)

    return update
