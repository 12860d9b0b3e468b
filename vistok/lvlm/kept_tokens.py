"""Which visual tokens of a few pictures each pruner keeps, as bits over the picture's grid, to be looked at."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isqrt
from typing import Any

import torch
from torch import Tensor

from vistok.lvlm.context import reads_tower
from vistok.lvlm.downsample import NAME as DOWNSAMPLE
from vistok.lvlm.family import family_of
from vistok.lvlm.prompting import batches
from vistok.lvlm.prune import prune
from vistok.lvlm.pruning_methods import Method
from vistok.lvlm.pruning_runs import Asking

Grid = tuple[int, int]


def picture_grids(asking: Asking) -> list[Grid | None]:
    """Rows and columns of the visual tokens of each question's picture; None where they are no grid of one picture."""
    with torch.inference_mode():
        one_by_one = batches(asking.model, asking.processor, asking.questions, asking.read, batch=1)
        found: dict[int, Grid | None] = {}
        for each in one_by_one:
            [number] = each.numbers
            found[number] = _grid(asking.model, each.inputs, int(_visual(asking.model, each.inputs).sum()))
    return [found[number] for number in range(len(asking.questions))]


def kept_tokens(asking: Asking, method: Method, budget: float, candidate: Mapping[str, Any]) -> list[str]:
    """Per question the tokens that are left behind the last layer, as `bits`: empty if the pruner cannot be shown.

    One question at a time, so that nothing is padded. Merged tokens count where the token sits that they went into.
    """
    if method.name == DOWNSAMPLE:
        return [""] * len(asking.questions)
    built = method.build(candidate)
    budgets = built.budgets(budget)[: len(built.pruners)]
    pixels = any(map(reads_tower, built.pruners))
    found: dict[int, str] = {}
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode(), prune(asking.model, built.pruners, budget=budgets, generator=generator) as handle:
        for each in batches(asking.model, asking.processor, asking.questions, asking.read, batch=1, pixels=pixels):
            [number] = each.numbers
            asking.model(**each.inputs)
            visual = _visual(asking.model, each.inputs)
            left = torch.zeros_like(visual)
            left[handle.source[0]] = True
            found[number] = bits(left[visual])
    return [found[number] for number in range(len(asking.questions))]


def bits(kept: Tensor) -> str:
    """[n] bool, row by row, as hexadecimal digits: the first token is the highest bit of the first digit."""
    padded = kept.tolist() + [False] * (-len(kept) % 4)
    digits = (padded[start : start + 4] for start in range(0, len(padded), 4))
    return "".join(f"{sum(int(bit) << (3 - place) for place, bit in enumerate(digit)):x}" for digit in digits)


def first_questions(asking: Asking, count: int) -> Asking:
    """The same model asked only the first questions."""
    return replace(asking, questions=list(asking.questions)[:count])


def _visual(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """[n] bool: which tokens of the only prompt are an image's."""
    placeholder = family_of(model).modalities["image"].placeholder
    ids: Tensor = inputs["input_ids"][0]
    found: Tensor = ids == getattr(model.config, placeholder)
    return found


def _grid(model: Any, inputs: Mapping[str, Any], tokens: int) -> Grid | None:
    sizes: Sequence[Sequence[int]] | Tensor | None = inputs.get("image_grid_thw")
    if sizes is not None and len(sizes) == 1:
        merged = int(getattr(model.config.vision_config, "spatial_merge_size", 1))
        grid = int(sizes[0][1]) // merged, int(sizes[0][2]) // merged
    else:
        grid = isqrt(tokens), isqrt(tokens)
    return grid if grid[0] * grid[1] == tokens and tokens else None
