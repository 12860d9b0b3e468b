"""Decoders of JPEG, fastest first; those with libjpeg-turbo in them give the same pixels."""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module

import numpy as np
import numpy.typing as npt

from vistok.data.strict_pillow import strictly

Pixels = npt.NDArray[np.uint8]
Decode = Callable[[bytes], Pixels]


@cache
def jpeg_decoder(name: str) -> Decode | None:
    """From the content of a grey or colour JPEG to RGB [H, W, 3]; None for "pillow", which needs no function.

    The function raises ValueError or RuntimeError for what it cannot decode.

    Raises: ValueError naming the known ones; ImportError naming the extra if it is absent.
    """
    if name not in _DECODERS:
        raise ValueError(f"decode_image: expected jpeg to be one of {list(_DECODERS)}, got {name!r}")
    try:
        with strictly():
            return _DECODERS[name]()
    except ImportError as error:
        raise ImportError(f"jpeg={name!r} is absent ({error}): pip install 'vistok[jpeg]'") from error


@cache
def default_jpeg_decoder() -> str:
    """The name of the fastest that is installed."""
    for name in _DECODERS:
        try:
            jpeg_decoder(name)
        except ImportError:
            continue
        return name
    raise AssertionError("Pillow is always there")


def _simplejpeg() -> Decode:
    import simplejpeg

    return partial(simplejpeg.decode_jpeg, colorspace="RGB", strict=True)


def _torchvision() -> Decode:
    import torch

    io = import_module("torchvision.io")
    if not hasattr(torch.ops.image, "decode_jpeg"):
        raise ImportError("torchvision was built without libjpeg")

    def decode(content: bytes) -> Pixels:
        encoded = torch.frombuffer(bytearray(content), dtype=torch.uint8)
        pixels: Pixels = io.decode_jpeg(encoded, mode="RGB").permute(1, 2, 0).numpy()
        return pixels

    return decode


_DECODERS: dict[str, Callable[[], Decode | None]] = {
    "simplejpeg": _simplejpeg,
    "torchvision": _torchvision,
    "pillow": lambda: None,
}
