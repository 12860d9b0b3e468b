"""Keys and values of the tokens that a causal transformer has seen, so that each new token costs one step.

B items, h heads, d width of a head, n tokens seen, k new ones.
"""

import torch
from torch import Tensor


class LayerCache:
    """What one attention layer has seen. Room is made in doubling steps: copying stays a constant share of the work."""

    def __init__(self) -> None:
        self.length = 0
        self._room: tuple[Tensor, Tensor] | None = None

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """keys, values [B, h, k, d] of new tokens -> those of all tokens [B, h, n + k, d], views of the cache.

        Raises: ValueError if the batch is another than before.
        """
        begin, end = self.length, self.length + keys.shape[2]
        if self._room is not None and self._room[0].shape[0] != keys.shape[0]:
            raise ValueError(
                f"cache: expected a batch of {self._room[0].shape[0]} as in earlier steps, got {keys.shape[0]}"
            )
        if self._room is None or self._room[0].shape[2] < end:
            self._room = (self._grown(keys, 0, end), self._grown(values, 1, end))
        for room, new in zip(self._room, (keys, values), strict=True):
            room[:, :, begin:end] = new
        self.length = end
        return self._room[0][:, :, :end], self._room[1][:, :, :end]

    def _grown(self, like: Tensor, which: int, least: int) -> Tensor:
        slots = max(least, 2 * self.length, 16)
        room = like.new_empty((*like.shape[:2], slots, like.shape[3]))
        if self._room is not None:
            room[:, :, : self.length] = self._room[which][:, :, : self.length]
        return room


class KeyValueCache:
    """One `LayerCache` for each layer, and how many tokens all of them hold."""

    def __init__(self, layers: int) -> None:
        self.layers = [LayerCache() for _ in range(layers)]

    @property
    def length(self) -> int:
        """Tokens seen so far."""
        return self.layers[0].length if self.layers else 0


def causal_mask(new: int, total: int, device: torch.device) -> Tensor:
    """[new, total] bool: the last `new` of `total` tokens see what lies before them and themselves."""
    past = total - new
    return torch.arange(total, device=device) <= torch.arange(past, total, device=device)[:, None]
