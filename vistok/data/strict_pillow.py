"""Pillow called so that what it does depends on the picture alone, not on the process around it."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

from PIL import ImageFile


class _Inside(threading.local):
    """Whether this thread is inside `strictly()`."""

    value = False

    def match(self, message: str) -> bool:
        """What `warnings` asks the message pattern of a filter."""
        return self.value


_inside = _Inside()
_FILTER = ("ignore", _inside, Warning, None, 0)


class _TolerantOutside:
    """Stands in for a true LOAD_TRUNCATED_IMAGES: still true everywhere but inside `strictly()`."""

    def __bool__(self) -> bool:
        return not _inside.value


@contextmanager
def strictly() -> Iterator[None]:
    """In this block and thread nothing warns, and Pillow refuses damage even if LOAD_TRUNCATED_IMAGES is set.

    Other threads notice nothing: `warnings.catch_warnings`, or a flag that is set and put back, would change them too,
    and would make every once-only warning of the process appear anew with each picture.
    """
    _put_filter_first()
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        ImageFile.LOAD_TRUNCATED_IMAGES = cast(bool, _TolerantOutside())
    before, _inside.value = _inside.value, True
    try:
        yield
    finally:
        _inside.value = before


def _put_filter_first() -> None:
    filters = cast(list[Any], warnings.filters)
    if filters[:1] != [_FILTER]:
        if _FILTER in filters:
            filters.remove(_FILTER)
        filters.insert(0, _FILTER)
