"""What a process makes once and keeps: open files, indices, listings. None of it travels in a pickle."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import RLock
from typing import Any, TypeVar

_T = TypeVar("_T")


class Kept:
    """The last `limit` things that were asked for, by key. Pickles empty; one thread at a time makes something."""

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._things: OrderedDict[Hashable, Any] = OrderedDict()
        self._lock = RLock()

    def __reduce__(self) -> tuple[type["Kept"], tuple[int]]:
        return Kept, (self._limit,)

    def get(self, key: Hashable, make: Callable[[], _T]) -> _T:
        """The thing under `key`, made if it is not kept."""
        with self._lock:
            if key not in self._things:
                self._things[key] = make()
                while len(self._things) > self._limit:
                    self._things.popitem(last=False)
            self._things.move_to_end(key)
            thing: _T = self._things[key]
            return thing

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._things.clear()
