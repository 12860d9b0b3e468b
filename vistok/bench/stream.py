"""Streaming semantic tokens: what one costs late in an image against early; near 1 is a cache that works."""

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

import vistok
from vistok.bench.timing import Timing, in_turn

# The full depth of the semantic decoder at half its width, which needs a quarter of the memory and of the time.
_SMALL: dict[str, Any] = {
    "low_level_encoder": {"depth": 1, "embed_dim": 64},
    "semantic_decoder": {"embed_dim": 512},
    "pixel_decoder": {"embed_dim": 64, "decoder_depth": 1},
}


def run(
    rounds: int = 7, *, early: int = 10, late: int = 250, tokenizer: str = "mingtok", small: bool = True
) -> Iterator[tuple[str, list[Timing]]]:
    """Yield the time of one token at position `early`, the base, and at `late`, in turn from two streams.

    Each round takes the next position of both. small: see above; false: the tokenizer as its preset says.
    Raises: ValueError unless 2 <= early < late.
    """
    if not 2 <= early < late:
        raise ValueError(f"stream: expected 2 <= early < late, got {early} and {late}")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            torch.manual_seed(0)
            model: Any = vistok.tokenizer(tokenizer, **(_SMALL if small else {}))
            model.eval()
            candidates = {f"token {place}": _next_token(model, place) for place in (early, late)}
            timings = in_turn(candidates, rounds, clock=time.process_time)
    finally:
        torch.set_num_threads(threads)
    yield f"width {model.semantic_dim}, {model.semantic_decoder.blocks.depth} layers", timings


def _next_token(model: Any, position: int) -> Callable[[], torch.Tensor]:
    """One step of a stream that holds what lies before `position` (counted from 1) at first."""
    generator = torch.Generator().manual_seed(position)
    stream = model.stream()
    stream.step(torch.randn(1, position - 1, model.dim, generator=generator))
    token = torch.randn(1, 1, model.dim, generator=generator)
    return lambda: stream.step(token)
