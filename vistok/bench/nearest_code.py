"""Nearest-code search against vector-quantize-pytorch's eval pass and torch.cdist, at sizes of public tokenizers."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vistok.bench.timing import Timing, in_turn
from vistok.ops import nearest_code

SIZES = {
    "SEED 8192 x 32": (1024, 8192, 32),
    "LlamaGen 16384 x 8": (1024, 16384, 8),
    "taming 1024 x 256": (1024, 1024, 256),
}


def run(rounds: int = 7) -> Iterator[tuple[str, list[Timing]]]:
    """Yield the size's name and the timings, vistok first; all candidates get the same vectors and codes."""
    generator = torch.Generator().manual_seed(0)
    for name, (vectors, codes, width) in SIZES.items():
        x = torch.randn(vectors, width, generator=generator)
        codebook = torch.randn(codes, width, generator=generator)
        peer = VectorQuantize(width, codes).eval()
        peer.codebook = codebook
        candidates = {
            "vistok": partial(nearest_code, x, codebook),
            "vector-quantize-pytorch": partial(peer, x[None]),
            "torch.cdist": partial(_cdist, x, codebook),
        }
        with torch.inference_mode():
            timings = in_turn(candidates, rounds)
        yield name, timings


def _cdist(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(x, codebook).argmin(1)
