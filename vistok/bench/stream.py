"""Streaming semantic tokens: what a token costs late in an image against early, both from the same stream of steps."""

import time
from collections.abc import Iterator
from statistics import median
from typing import Any

import torch

import vistok
from vistok.bench.timing import Timing

_AROUND = 4  # steps on each side of a position that are timed with it, since a single one is short


def run(
    rounds: int = 7, *, early: int = 10, late: int = 250, tokenizer: str = "mingtok", small: bool = True
) -> Iterator[tuple[str, list[Timing]]]:
    """Yield seconds per token around position `early`, the base, and `late`; a ratio near 1 means a cache that works.

    small: the full depth of the semantic decoder at a quarter of its width, which needs a sixteenth of the memory.
    Raises: ValueError unless 4 <= early < late.
    """
    if not _AROUND <= early < late:
        raise ValueError(f"stream: expected {_AROUND} <= early < late, got {early} and {late}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            torch.manual_seed(0)
            model: Any = vistok.tokenizer(tokenizer, **(_SMALL if small else {}))
            model.eval()
            passes = [_one_pass(model, early, late) for _ in range(rounds + 1)][1:]
    finally:
        torch.set_num_threads(threads)
    width, depth = model.semantic_dim, model.semantic_decoder.blocks.depth
    yield (
        f"1 x {late} tokens, width {width}, {depth} layers",
        [
            Timing(f"token {early}", median(first for first, _ in passes), 1.0),
            Timing(f"token {late}", median(last for _, last in passes), median(b / a for a, b in passes)),
        ],
    )


_SMALL: dict[str, Any] = {
    "low_level_encoder": {"depth": 1, "embed_dim": 64},
    "semantic_decoder": {"embed_dim": 256},
    "pixel_decoder": {"embed_dim": 64, "decoder_depth": 1},
}


def _one_pass(model: Any, early: int, late: int) -> tuple[float, float]:
    """Seconds per token around both positions, from one stream."""
    z = torch.randn(late + _AROUND + 1, 1, 1, model.dim, generator=torch.Generator().manual_seed(0))
    stream = model.stream()
    taken = []
    for latent in z:
        began = time.process_time()
        stream.step(latent)
        taken.append(time.process_time() - began)
    first, last = (median(taken[place - _AROUND : place + _AROUND + 1]) for place in (early, late))
    return first, last
