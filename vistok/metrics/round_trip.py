"""One image through a tokenizer and back, with what it cost."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vistok.protocols import Tokenizer
from vistok.tokens import TokenTensor


class RoundTrip(NamedTuple):
    """tokens of one image, length of them valid; image [3, H, W] decoded; bits of the raw ids, None if continuous.

    seconds: encode + decode, wall clock.
    """

    tokens: TokenTensor
    length: int
    image: Tensor
    bits: float | None
    seconds: float


def round_trip(tokenizer: Tokenizer, image: Tensor) -> RoundTrip:
    """Encode and decode image [3, H, W] in [0, 1]; call it inside `evaluating(tokenizer)`."""
    began = time.perf_counter()
    tokens = tokenizer.encode(image[None])
    decoded = tokenizer.decode(tokens)
    seconds = time.perf_counter() - began
    sizes = tokens.spec.codebook_sizes
    length = int(tokens.valid_lengths.sum())
    bits = length * sum(math.log2(size) for size in sizes) if sizes else None
    return RoundTrip(tokens, length, decoded[0], bits, seconds)


@contextmanager
def evaluating(tokenizer: Tokenizer) -> Iterator[None]:
    """Evaluation mode without gradients; the mode it was in comes back afterwards."""
    was_training = isinstance(tokenizer, nn.Module) and tokenizer.training
    if isinstance(tokenizer, nn.Module):
        tokenizer.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        if isinstance(tokenizer, nn.Module):
            tokenizer.train(was_training)
