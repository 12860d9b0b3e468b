"""Splits of the scenes by seed range, so that no list of files says which scene belongs where.

Scenes of "heldout" hold a pair of colour and shape that scenes of the other splits never show.
"""

_SPAN = 2**32
SPLITS = ("train", "validation", "test", "heldout")


def seeds_of(split: str) -> range:
    """All seeds of a split. Raises: ValueError naming the splits there are."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {', '.join(SPLITS)}, got {split!r}")
    first = SPLITS.index(split) * _SPAN
    return range(first, first + _SPAN)


def split_of(seed: int) -> str:
    """The split that a seed belongs to. Raises: ValueError if it is negative or past the last split."""
    if not 0 <= seed < len(SPLITS) * _SPAN:
        raise ValueError(f"seed: expected 0 <= seed < {len(SPLITS) * _SPAN}, got {seed}")
    return SPLITS[seed // _SPAN]
