"""Nearest-code search against vector-quantize-pytorch's eval pass and torch.cdist, at sizes of public tokenizers."""

from collections.abc import Iterator

import torch
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
        with torch.inference_mode():
            yield (
                name,
                in_turn(
                    {
                        "vistok": lambda x=x, codebook=codebook: nearest_code(x, codebook),
                        "vector-quantize-pytorch": lambda x=x, peer=peer: peer(x[None]),
                        "torch.cdist": lambda x=x, codebook=codebook: torch.cdist(x, codebook).argmin(1),
                    },
                    rounds,
                ),
            )
