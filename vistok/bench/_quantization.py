"""Cases of vistok.bench.ops with a codebook: the nearest code, and what a batch says about the codes."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from importlib.util import find_spec

import torch
from torch import Tensor
from vector_quantize_pytorch import VectorQuantize

from vistok.bench.timing import Candidates
from vistok.ops import code_statistics, nearest_code

# N vectors, K codes, D width; the names are public tokenizers with such codebooks.
SIZES = {
    "taming 1024 x 256": (4096, 1024, 256),
    "SEED 8192 x 32": (4096, 8192, 32),
    "LlamaGen 16384 x 8": (4096, 16384, 8),
    "IBQ 16384 x 256": (1024, 16384, 256),
    "Open-MAGVIT2 262144 x 16": (1024, 262144, 16),
}


def cases() -> Iterator[tuple[str, Candidates]]:
    """Yield each case and its candidates, vistok first."""
    for name, size in SIZES.items():
        yield f"nearest_code {name}", nearest_candidates(*size)
    yield "code_statistics 16384 rows, 1024 x 64", statistics_candidates(16384, 1024, 64)


def nearest_candidates(vectors: int, codes: int, width: int) -> Candidates:
    """Search in vistok and its peers. Raises: AssertionError if one finds a code clearly farther than another."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(vectors, width, generator=generator)
    codebook = torch.randn(codes, width, generator=generator)
    peer = VectorQuantize(width, codes).eval()
    peer.codebook = codebook
    candidates: dict[str, Callable[[], Tensor]] = {
        "vistok": partial(nearest_code, x, codebook),
        "vistok certified": partial(nearest_code, x, codebook, precision="certified"),
        "vector-quantize-pytorch": lambda: peer(x[None])[1][0],
        "torch.cdist": lambda: torch.cdist(x, codebook).argmin(1),
        "torch matmul": partial(_matmul, x, codebook),
    }
    if find_spec("faiss"):
        candidates["faiss-cpu"] = _faiss(x, codebook)
    expected = nearest_code(x, codebook, precision="certified")
    for name, call in candidates.items():
        _check_as_near(name, call(), expected, x, codebook)
    return candidates


def statistics_candidates(rows: int, codes: int, width: int) -> Candidates:
    """Sums per code in vistok and by the product with one-hot rows. Raises: AssertionError if they differ."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, width, generator=generator)
    codebook = torch.randn(codes, width, generator=generator)
    indices = nearest_code(x, codebook)

    def one_hot() -> tuple[Tensor, Tensor]:
        won = torch.nn.functional.one_hot(indices, codes).float()
        return won.sum(0), won.T @ x

    counts, sums = one_hot()
    ours = code_statistics(x, indices, codebook)
    torch.testing.assert_close(ours.counts.float(), counts)
    torch.testing.assert_close(ours.sums, sums, rtol=1e-4, atol=1e-3)
    return {"vistok": partial(code_statistics, x, indices, codebook), "one-hot product": one_hot}


def _matmul(x: Tensor, codebook: Tensor) -> Tensor:
    return torch.addmm(codebook.square().sum(1) / -2, x, codebook.T).argmax(1)


def _faiss(x: Tensor, codebook: Tensor) -> Callable[[], Tensor]:
    faiss = import_module("faiss")
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(codebook.shape[1])
    index.add(codebook.numpy())
    return lambda: torch.from_numpy(index.search(x.numpy(), 1)[1][:, 0])


def _check_as_near(name: str, found: Tensor, expected: Tensor, x: Tensor, codebook: Tensor) -> None:
    distances = [(x.double() - codebook[index].double()).square().sum(1) for index in (found, expected)]
    torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-4, msg=f"{name} found other codes")
