"""Cases of vistok.bench.ops without a codebook: rounded channels and signs, against the modules that build one."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor
from vector_quantize_pytorch import FSQ, LFQ

from vistok.bench.timing import Candidates
from vistok.ops import bsq, fsq, lfq

Quantize = Callable[[Tensor], tuple[Tensor, Tensor]]

_PEER = "vector-quantize-pytorch"
# Four pictures of 128 x 128 tokens; the levels of 64000 codes (arXiv:2309.15505), the bits of 262144 (MAGVIT-v2).
_ROWS, _LEVELS, _BITS = 65536, (8, 8, 8, 5, 5, 5), 18


def cases() -> Iterator[tuple[str, Candidates]]:
    """Yield each case and its candidates, vistok first."""
    yield f"fsq {_ROWS} rows, levels {' '.join(map(str, _LEVELS))}", fsq_candidates(_ROWS, _LEVELS)
    yield f"lfq {_ROWS} rows, {_BITS} bits", sign_candidates(_ROWS, _BITS, spherical=False)
    yield f"bsq {_ROWS} rows, {_BITS} bits", sign_candidates(_ROWS, _BITS, spherical=True)


def fsq_candidates(rows: int, levels: Sequence[int]) -> Candidates:
    """Rounding in vistok and its peer, whose name tells how many rows differ because they lie on a border in float32.

    Raises: AssertionError if other rows differ.
    """
    z = torch.randn(1, rows, len(levels), generator=torch.Generator().manual_seed(0))
    candidates = _pair(z, partial(fsq, levels=levels), FSQ(list(levels)).eval())
    (ours, ids), (theirs, their_ids) = (call() for call in candidates.values())
    differing = ids != their_ids
    assert torch.equal(differing, (ours != theirs).any(-1)), "ids and codes disagree about the rows that differ"
    on_border = _border_distance(z[differing], levels).amin(-1) < 1e-5
    assert bool(on_border.all()), f"{_PEER} rounds {int((~on_border).sum())} rows otherwise"
    note = f" ({int(differing.sum())} rows on a border differ)"
    return {name + note * (name == _PEER): call for name, call in candidates.items()}


def sign_candidates(rows: int, bits: int, spherical: bool) -> Candidates:
    """Signs in vistok and its peer, codes of length 1 if spherical. Raises: AssertionError if they differ."""
    z = torch.randn(1, rows, bits, generator=torch.Generator().manual_seed(0))
    peer = LFQ(dim=bits, spherical=spherical).eval()
    candidates = _pair(z, bsq if spherical else lfq, lambda values: peer(values)[:2])
    (ours, ids), (theirs, their_ids) = (call() for call in candidates.values())
    assert torch.equal(ids, their_ids.long()), f"{_PEER} has other signs"
    torch.testing.assert_close(ours, theirs)
    return candidates


def _pair(z: Tensor, ours: Quantize, theirs: Quantize) -> dict[str, Callable[[], tuple[Tensor, Tensor]]]:
    return {"vistok": partial(ours, z), _PEER: partial(theirs, z)}


def _border_distance(z: Tensor, levels: Sequence[int]) -> Tensor:
    """Distance to the nearest number that rounds either way, in units of a level, float64 as z [N, D]."""
    level = torch.tensor(levels, dtype=torch.float64)
    half = (level - 1) * 1.001 / 2
    offset = torch.where(level % 2 == 0, 0.5, 0.0).double()
    bounded = torch.tanh(z.double() + torch.atanh(offset / half)) * half - offset
    return ((bounded - bounded.floor()) - 0.5).abs()
