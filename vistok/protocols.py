"""What a method must offer to be a tokenizer, quantizer, pruner, merger, readout or codec: shapes, no code."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from vistok.tokens import Assignment, Selection, TokenSpec, TokenTensor

Budget = int | float | Tensor


class Quantized(NamedTuple):
    """What every quantizer returns.

    embeds [..., D] quantized vectors (gradients pass through), indices [...] or [..., Q] int64 (-1 where masked),
    loss [] float32 weighted sum to add to the training loss, stats: raw loss terms and counts by name.
    """

    embeds: Tensor
    indices: Tensor
    loss: Tensor
    stats: dict[str, Tensor]


@runtime_checkable
class Tokenizer(Protocol):
    """Images to tokens and back. `cannot` names what a method does not do ("decode", "fullgraph", "backward")."""

    cannot: frozenset[str]

    @property
    def spec(self) -> TokenSpec: ...

    def encode(self, images: Tensor, *, budget: int | Tensor | None = None, **options: Any) -> TokenTensor:
        """images [B, C, H, W] in [0, 1] -> tokens."""
        ...

    def decode(self, tokens: TokenTensor) -> Tensor:
        """Tokens -> images [B, C, H, W] in [0, 1]; NotImplementedError if the method has no decoder."""
        ...


@runtime_checkable
class Quantizer(Protocol):
    """Vectors to codebook entries: `dim` wide, one id per codebook."""

    cannot: frozenset[str]
    dim: int

    @property
    def codebook_sizes(self) -> tuple[int, ...]: ...

    def __call__(self, z: Tensor, mask: Tensor | None = None) -> Quantized:
        """z [..., D], mask [...] bool or None."""
        ...

    def lookup(self, indices: Tensor) -> Tensor:
        """indices [...] or [..., Q] int64 -> embeds [..., D]."""
        ...


@runtime_checkable
class Pruner(Protocol):
    """Chooses tokens. `needs` names the context it takes: "attention", "text", "previous", "gradient", "generator"."""

    cannot: frozenset[str]
    needs: frozenset[str]

    def select(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Selection: ...


@runtime_checkable
class Merger(Protocol):
    """Assigns tokens to fewer slots; `tokens.merge(assignment)` averages them."""

    cannot: frozenset[str]
    needs: frozenset[str]

    def assign(self, tokens: TokenTensor, budget: Budget, **context: Any) -> Assignment: ...


@runtime_checkable
class Readout(Protocol):
    """Features of a frozen backbone, one [B, N, D] per layer, to [B, ...]."""

    def __call__(self, features: Sequence[Tensor], tokens: TokenTensor | None = None) -> Tensor: ...


@runtime_checkable
class Codec(Protocol):
    """Perception tokens to text vocabulary ids and back."""

    def to_text(self, tokens: TokenTensor) -> list[str]: ...

    def from_text(self, ids: Sequence[str]) -> TokenTensor: ...
