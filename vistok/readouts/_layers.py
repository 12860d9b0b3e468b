"""Which blocks of a backbone a readout looks at."""

from collections.abc import Sequence


def chosen_blocks(owner: str, layers: Sequence[int] | None, count: int) -> list[int]:
    """Ids of `count` blocks, ascending: all for None; negative ones count from the end.

    Raises: ValueError, beginning with `owner`, for none, for one that is not there, or for one named twice.
    """
    if layers is None:
        return list(range(count))
    chosen = sorted({layer + count if layer < 0 else layer for layer in layers})
    if not chosen or len(chosen) != len(layers) or chosen[0] < 0 or chosen[-1] >= count:
        raise ValueError(f"{owner}: expected layers to name different blocks of 0..{count - 1}, got {list(layers)}")
    return chosen
