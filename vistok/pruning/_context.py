"""One answer of all pruners to context that they do not take."""

from collections.abc import Mapping
from typing import Any


def refuse_context(pruner: str, context: Mapping[str, Any], needs: frozenset[str]) -> None:
    """Raise TypeError naming what is in `context` but not in `needs`."""
    unknown = sorted(set(context) - needs)
    if unknown:
        takes = ", ".join(sorted(needs)) or "none"
        raise TypeError(f"{pruner}: unexpected context {', '.join(unknown)}; it takes {takes} (see its `needs`)")
