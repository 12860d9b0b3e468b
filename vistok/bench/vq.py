"""Memory and time of training and searching codebooks: what vistok streams against the formulas on whole matrices.

Peak is what torch's allocator held at most beyond what a candidate was given, from its own record of every allocation
(torch.profiler), inside vistok's ops too; the C++ search allocates some kilobytes elsewhere. Difference is the largest
one between results and gradients of a candidate and those of the first, relative to the largest of the first's where
that is above 1.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.profiler import ProfilerActivity, profile

from vistok.bench.timing import Timing, in_turn
from vistok.ops import index_propagation, nearest_code
from vistok.quantizers.ibq import IBQ

COLUMNS = {
    "peak MB": "{0.peak_megabytes:.1f}",
    "peak / first": "{0.peak_ratio:.2f}",
    "difference": "{0.difference:.1e}",
}
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Measured(Timing):
    """Also the peak of the allocator in 10^6 bytes, the same divided by the first one's, and the largest difference."""

    peak_megabytes: float
    peak_ratio: float
    difference: float


def run(
    rounds: int = 7, vectors: int = 4096, codes: int = 4096, width: int = 256
) -> Iterator[tuple[str, list[Timing]]]:
    """Yield every case with its candidates, vistok first: IBQ's op, its whole step, and a search.

    vectors, codes, width: of IBQ's training step; the search is 16 times as many vectors in 4 times as many codes of
    width 8. Raises: ValueError for a size below 1.
    """
    if min(vectors, codes, width) < 1:
        raise ValueError(f"bench vq: expected vectors, codes and width >= 1, got {vectors}, {codes} and {width}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = f"{vectors} x {codes} x {width}"
        yield f"index propagation, {size}", measured(propagation_candidates(vectors, codes, width), rounds)
        for weight, name in ((0.0, "without entropies"), (0.05, "with entropies")):
            yield f"IBQ step {name}, {size}", measured(step_candidates(vectors, codes, width, weight), rounds)
        vectors, codes = 16 * vectors, 4 * codes
        yield f"search, {vectors} x {codes} x 8", measured(search_candidates(vectors, codes, 8), rounds)
    finally:
        torch.set_num_threads(threads)


def measured(candidates: Mapping[str, Call], rounds: int) -> list[Timing]:
    """Time candidates in turn, then call each once more for its peak and its results."""
    timings = in_turn(candidates, rounds)
    peaks = [peak_bytes(call) for call in candidates.values()]
    results = [call() for call in candidates.values()]
    return [
        Measured(**asdict(timing), peak_megabytes=peak / 1e6, peak_ratio=peak / max(peaks[0], 1), difference=apart)
        for timing, peak, apart in zip(
            timings, peaks, (_difference(found, results[0]) for found in results), strict=True
        )
    ]


def peak_bytes(call: Callable[[], object]) -> int:
    """The most bytes that torch's CPU allocator held at once during a call, above what it held before."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its record of every start is not ours to print
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        call()
    events = record.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def propagation_candidates(vectors: int, codes: int, width: int) -> dict[str, Call]:
    """embeds and the gradients of z and codebook, streamed and by autograd over one-hot and softmax rows."""
    z, codebook, upstream = _inputs(vectors, codes, width)

    def with_gradients(forward: Callable[[], Tensor]) -> tuple[Tensor, ...]:
        embeds = forward()
        return embeds.detach(), *torch.autograd.grad(embeds, (z, codebook), upstream)

    return {
        "vistok": partial(with_gradients, lambda: index_propagation(z, codebook)[0]),
        "dense autograd": partial(with_gradients, lambda: _dense(z @ codebook.T, codebook)[0]),
    }


def step_candidates(vectors: int, codes: int, width: int, entropy_weight: float) -> dict[str, Call]:
    """Loss and gradients of a training step, by the quantizer and by autograd over whole matrices."""
    z, codebook, upstream = _inputs(vectors, codes, width)
    quantizer = IBQ(width, codes, entropy_weight=entropy_weight).train()
    quantizer.codebook = nn.Parameter(codebook.detach())

    def ours() -> tuple[Tensor, Tensor]:
        out = quantizer(z)
        return out.embeds, out.loss

    def dense() -> tuple[Tensor, Tensor]:
        logits = z @ quantizer.codebook.T
        embeds, one_hot = _dense(logits, quantizer.codebook)
        chosen = one_hot @ quantizer.codebook
        loss = mse_loss(embeds, z) + mse_loss(chosen.detach(), z) + quantizer.beta * mse_loss(chosen, z.detach())
        if entropy_weight:
            p, log_p = (logits / quantizer.temperature).softmax(1), (logits / quantizer.temperature).log_softmax(1)
            mean = p.mean(0)
            entropy = -(p * log_p).sum(1).mean() + (mean * (mean + quantizer.entropy_eps).log()).sum()
            loss = loss + entropy_weight * entropy
        return embeds, loss

    def with_gradients(forward: Callable[[], tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        embeds, loss = forward()
        total = (embeds * upstream).sum() + loss
        return loss.detach(), *torch.autograd.grad(total, (z, quantizer.codebook))

    return {"vistok": partial(with_gradients, ours), "dense autograd": partial(with_gradients, dense)}


def _dense(logits: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """embeds [N, D] with the gradient of the softmax, and one-hot rows [N, K], of logits [N, K]."""
    p = logits.softmax(1)
    one_hot = torch.zeros_like(p).scatter_(1, logits.argmax(1, keepdim=True), 1.0)
    return (one_hot - p.detach() + p) @ codebook, one_hot


def search_candidates(vectors: int, codes: int, width: int) -> dict[str, Call]:
    """Ids of the nearest codes by vistok, by its reference, and by whole rows of scores, 1024 vectors at a time."""
    generator = torch.Generator().manual_seed(0)
    x, codebook = (torch.randn(count, width, generator=generator) for count in (vectors, codes))

    def rows_of_scores() -> tuple[Tensor, ...]:
        half = codebook.square().sum(1) / -2
        return (torch.cat([torch.addmm(half, part, codebook.T).argmax(1) for part in x.split(1024)]),)

    return {
        "vistok": lambda: (nearest_code(x, codebook),),
        "vistok reference": lambda: (nearest_code(x, codebook, backend="reference"),),
        "torch, 1024 rows at a time": rows_of_scores,
    }


def _inputs(vectors: int, codes: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    # Logits of variance 1, so that the softmax is neither one-hot nor even.
    z, codebook, upstream = (torch.randn(n, width, generator=generator) for n in (vectors, codes, vectors))
    return (z / width**0.5).requires_grad_(), codebook.requires_grad_(), upstream


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    if not found[0].is_floating_point():  # ids: the share that differs
        return float((found[0] != expected[0]).double().mean())
    scales = [max(1.0, float(wanted.abs().max())) for wanted in expected]
    return max(float((a - b).abs().max()) / scale for a, b, scale in zip(found, expected, scales, strict=True))
