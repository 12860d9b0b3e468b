"""One answer of all pruners to context that they do not take, or that they need and do not get."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def refuse_context(pruner: str, context: Mapping[str, Any], needs: frozenset[str]) -> None:
    """Raise TypeError naming what is in `context` but not in `needs`."""
    unknown = sorted(set(context) - needs)
    if unknown:
        takes = ", ".join(sorted(needs)) or "none"
        raise TypeError(f"{pruner}: unexpected context {', '.join(unknown)}; it takes {takes} (see its `needs`)")


def required_context(pruner: str, name: str, value: Tensor | None, *shape: int | str) -> Tensor:
    """The value, if it has that shape; a letter stands for any number.

    Raises: ValueError if there is none, or its shape is another.
    """
    expected = f"[{', '.join(map(str, shape))}]"
    if value is None:
        raise ValueError(f"{pruner}: expected {name} {expected}, got none; vistok.protocols.Pruner says what it is")
    fits = value.ndim == len(shape) and all(
        isinstance(size, str) or size == own for size, own in zip(shape, value.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{pruner}: expected {name} {expected} for these tokens, got {list(value.shape)}")
    return value
