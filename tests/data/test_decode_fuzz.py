"""Damaged and hostile pictures: each one decodes or is refused by a ValueError, whatever was done to it.

Run as a script (seed, count) it decodes that many and prints by how many bytes memory grew.
"""

import faulthandler
import io
import os
import random
import resource
import subprocess
import sys
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image
from skimage import data

from vistok.data.decode_image import MAX_PIXELS, decode_image

SECONDS = 5
EDGES = [0, 1, 0x7F, 0x80, 0xFE, 0xFF]


def originals() -> dict[str, list[bytes]]:
    photo = Image.fromarray(data.astronaut()[60:100, 200:248])
    grey, palette = photo.convert("L"), photo.quantize(16)
    alpha = photo.convert("RGBA")
    alpha.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    return {
        "JPEG": [
            *(save(photo, "JPEG", progressive=progressive, exif=exif) for progressive in (False, True)),
            *(
                save(photo, "JPEG", subsampling=kind, quality=50, restart_marker_blocks=3)
                for kind in ("4:4:4", "4:2:2")
            ),
            *(save(image, "JPEG") for image in (grey, photo.convert("CMYK"))),
            save(photo, "MPO", save_all=True, append_images=[photo]),
        ],
        "PNG": [
            *(save(image, "PNG") for image in (photo, grey, alpha, deep, photo.convert("1"), alpha.convert("LA"))),
            save(palette, "PNG", transparency=bytes(range(16)), exif=exif),
            save(photo, "PNG", save_all=True, append_images=[photo, photo]),
        ],
        "WEBP": [
            *(save(image, "WEBP", lossless=lossless) for image in (photo, alpha) for lossless in (False, True)),
            save(photo, "WEBP", exif=exif),
            save(photo, "WEBP", save_all=True, append_images=[grey.convert("RGB")]),
        ],
        "GIF": [
            save(palette, "GIF", transparency=3),
            save(grey, "GIF", interlace=1),
            save(photo, "GIF", save_all=True, append_images=[grey], disposal=2),
        ],
        "BMP": [save(image, "BMP") for image in (photo, grey, palette, alpha, photo.convert("1"))],
        "TIFF": [
            *(
                save(photo, "TIFF", compression=kind)
                for kind in (None, "tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")
            ),
            *(
                save(image, "TIFF", exif=exif)
                for image in (alpha, deep, palette, photo.convert("CMYK"), photo.convert("LAB"))
            ),
            *(save(grey.convert(mode), "TIFF", compression="lzma") for mode in ("I", "F")),
            save(photo.convert("1"), "TIFF", compression="group4"),
            save(photo, "TIFF", save_all=True, append_images=[grey]),
        ],
    }


def save(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **{key: value for key, value in options.items() if value is not None})
    return file.getvalue()


def mutants(seed: int, count: int, kinds: tuple[str, ...] = ()) -> Iterator[bytes]:
    rng = random.Random(seed)
    corpus = originals()
    chosen = kinds or tuple(corpus)
    for _ in range(count):
        content = bytearray(rng.choice(corpus[rng.choice(chosen)]))
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            change = rng.choice([flip_bits, change_header, change_number, truncate, splice, repeat, blank])
            change(rng, content, corpus)
        yield bytes(content)


def flip_bits(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    for _ in range(rng.choice([1, 3, 20])):
        if content:
            content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def change_header(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    if content:
        content[rng.randrange(min(len(content), 128))] = rng.choice([*EDGES, rng.randrange(256)])


def change_number(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    """Sizes, counts, offsets: set some 2 or 4 bytes, most often where a header keeps its numbers."""
    size = rng.choice([2, 4])
    at = rng.randrange(max(1, min(len(content), rng.choice([64, 512, 1 << 30])) - size))
    value = rng.choice([0, 1, 48, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)])
    content[at : at + size] = (value % (1 << 8 * size)).to_bytes(size, rng.choice(["big", "little"]))


def truncate(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    del content[rng.randrange(len(content) + 1) :]


def splice(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    other = rng.choice(rng.choice(list(corpus.values())))
    start, at = rng.randrange(len(other)), rng.randrange(len(content) + 1)
    content[at : at + rng.choice([0, 0, 100])] = other[start : start + rng.choice([4, 40, 400])]


def repeat(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    start, at = rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)
    content[at:at] = content[start : start + rng.choice([8, 64, 256])] * rng.choice([1, 2, 30])


def blank(rng: random.Random, content: bytearray, corpus: dict[str, list[bytes]]) -> None:
    start, size = rng.randrange(len(content) + 1), rng.choice([1, 8, 64])
    content[start : start + size] = bytes([rng.choice(EDGES)]) * len(content[start : start + size])


def decode_or_refuse(content: bytes, jpeg: str | None = None) -> np.ndarray | str:
    try:
        pixels = decode_image(content, "fuzzed", jpeg=jpeg)
    except ValueError as error:
        message = str(error)
        assert message.startswith("fuzzed: expected ") and message.isprintable() and len(message) <= 300, message
        assert "0x" not in message, message  # an address would change from run to run
        return message
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.flags.c_contiguous
    assert 0 < pixels.shape[0] * pixels.shape[1] <= MAX_PIXELS
    return pixels


def test_every_damaged_picture_decodes_or_is_refused():
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        outcomes = [decode_or_refuse(content) for content in mutants(seed=0, count=600)]
    refused = sum(isinstance(outcome, str) for outcome in outcomes)
    assert not shown and 100 < refused < 500


def test_which_damaged_jpegs_are_refused_and_their_pixels_do_not_depend_on_the_decoder():
    for content in mutants(seed=1, count=300, kinds=("JPEG",)):
        one, *others = (decode_or_refuse(content, jpeg) for jpeg in ("pillow", "simplejpeg", "torchvision"))
        assert all(type(one) is type(other) and np.array_equal(one, other) for other in others)


@pytest.mark.slow
def test_thousands_of_damaged_pictures_take_neither_long_nor_much_memory():
    command = [sys.executable, "-W", "error", __file__, "2", "6000"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert int(done.stdout) < 1 << 30


def main(seed: int, count: int) -> None:
    decode_or_refuse(originals()["JPEG"][0])
    before = peak_memory()
    for content in mutants(seed, count):
        faulthandler.dump_traceback_later(SECONDS, exit=True)  # also stops what hangs in C
        decode_or_refuse(content)
        faulthandler.cancel_dump_traceback_later()
    print(peak_memory() - before)


def peak_memory() -> int:
    """In bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
