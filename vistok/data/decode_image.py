"""One way from the bytes of a picture to its pixels, whatever the format, the installed decoders and the damage."""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version

import numpy as np
import PIL
from PIL import ExifTags, Image, UnidentifiedImageError, features
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.MpoImagePlugin import MpoImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TILELENGTH, TILEWIDTH, TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from vistok.data.jpeg_decoders import Decode, Pixels, default_jpeg_decoder, jpeg_decoder
from vistok.data.strict_pillow import strictly

MAX_PIXELS = 25_000_000  # keeps a picture below 1 GB: Pillow's copies, or float32 [3, H, W] twice in a tokenizer
_MAX_SCANS = 100  # an encoder writes about ten; each costs a pass over all pixels, and a few bytes of the file
_MAX_TILES = 1 << 17  # Pillow copies 64 kB for each
_MAX_NAME, _MAX_MESSAGE = 160, 300  # characters
_DEEP_GREY = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
_FORMATS = tuple(
    kind.format for kind in (JpegImageFile, PngImageFile, WebPImageFile, GifImageFile, BmpImageFile, TiffImageFile)
)
_SIGNATURES = {
    b"\xff\xd8\xff": "a JPEG with a broken header",
    b"\x89PNG": "a PNG with a broken header",
    b"GIF8": "a GIF with a broken header",
    b"BM": "a BMP with a broken header",
    b"II*\0": "a TIFF with a broken header",
    b"MM\0*": "a TIFF with a broken header",
    b"RIFF": "a RIFF file that is no readable WebP",
    b"%PDF": "a PDF",
    b"PK\x03\x04": "a ZIP archive",
    b"\x1f\x8b": "gzip data",
}
_JPEG_MARKER = re.compile(rb"\xff[\x02-\xcf\xd8-\xfe]")  # neither a stuffed zero, a restart nor fill bytes


class _RefusedError(ValueError):
    """Its message is ours: what was expected and what was found."""


def decode_image(
    content: bytes,
    name: str,
    *,
    max_pixels: int = MAX_PIXELS,
    admit: Callable[[int], None] | None = None,
    jpeg: str | None = None,
) -> Pixels:
    """The pixels of a JPEG, PNG, WebP, GIF, BMP or TIFF file: RGB uint8 [H, W, 3], C-contiguous, EXIF turned upright.

    The first frame of an animation, transparency laid onto white, 16-bit grey scaled to 8. Grey of 32 bits has no
    agreed range: integers within 0..255 or 0..65535 and floats within 0..1 or 0..255 are scaled, others refused.

    Args:
        content: the whole file.
        name: what errors call the picture.
        max_pixels: refuse larger ones, from the header alone.
        admit: called once with the number of pixels, after the header is read and before anything is decoded.
        jpeg: "simplejpeg", "torchvision" or "pillow"; None = the first that is installed. All give the same pixels and
            the same errors: a picture that a faster decoder refuses is given to Pillow, whose word is final.
    Raises:
        ValueError starting with `name`, one line, if the picture is too large, damaged or none.
        ImportError naming the extra if the decoder asked for is absent.
    """
    fast = jpeg_decoder(jpeg or default_jpeg_decoder())
    with _errors_named(name):
        image = _open(content, max_pixels)
    if admit is not None:
        admit(image.width * image.height)
    with _errors_named(name):
        pixels = _decode_fast(image, content, fast)
        if pixels is None:
            image.load()
        # Only now: a PNG may carry its EXIF behind the pixels, and Pillow turns a TIFF while it loads.
        orientation = _orientation(image)
        if pixels is None:
            image = _in_plain_mode(image)  # lets go of the file's own buffers, of WebP three times the picture
            pixels = _to_array(image)
        return np.ascontiguousarray(_upright(pixels, orientation))


def picture_size(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """(H, W) of a picture that `decode_image` would give, from its header. Raises: ValueError as `decode_image`."""
    with _errors_named(name):
        image = _open(content, max_pixels)
        turned = _orientation(image) in (5, 6, 7, 8)
    return (image.width, image.height) if turned else (image.height, image.width)


def decoder_name() -> str:
    """Libraries and versions that decide the pixels, such as "simplejpeg 1.9.0, Pillow 13.0.0, libjpeg-turbo 3.2.0"."""
    jpeg, turbo = default_jpeg_decoder(), features.version_feature("libjpeg_turbo")
    names = [] if jpeg == "pillow" else [f"{jpeg} {version(jpeg)}"]
    names += [f"Pillow {PIL.__version__}", f"libjpeg-turbo {turbo}" if turbo else f"libjpeg {features.version('jpg')}"]
    return ", ".join(names)


def _open(content: bytes, max_pixels: int) -> Image.Image:
    """The picture with its header read; its pixels are not."""
    try:
        image = Image.open(io.BytesIO(content), formats=_FORMATS)
    except UnidentifiedImageError as error:
        expected = "expected a picture (JPEG, PNG, WebP, GIF, BMP or TIFF)"
        raise _RefusedError(f"{expected}, found {_kind(content)}") from error
    except Image.DecompressionBombError as error:
        raise _RefusedError(f"expected at most {max_pixels} pixels, Pillow says: {error}") from error
    if image.width * image.height > max_pixels:
        size = f"{image.width} x {image.height} = {image.width * image.height}"
        raise _RefusedError(f"expected at most {max_pixels} pixels, its header says {size}; see max_pixels")
    if isinstance(image, JpegImageFile) and (scans := _count_scans(content)) > _MAX_SCANS:
        raise _RefusedError(f"expected a JPEG of at most {_MAX_SCANS} scans, found {scans}")
    if isinstance(image, TiffImageFile):
        _check_tiles(image, max_pixels)
    return image


def _kind(content: bytes) -> str:
    """What the content of a file that is no readable picture seems to be."""
    head = content[:512]
    if not head:
        return "an empty file (0 bytes)"
    if not head.strip(b"\0"):
        return "zeros where the header should be"
    if head.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if head[4:8] == b"ftyp":
        return f"an ISO media file of the brand {head[8:12].decode('latin-1')!r}, such as AVIF, HEIC or MP4"
    for signature, kind in _SIGNATURES.items():
        if head.startswith(signature):
            return kind
    if _is_text(text := _utf8(head[:40])):
        return f"text that begins {text!r}"
    return f"unknown bytes that begin {head[:8].hex(' ')}"


def _utf8(head: bytes) -> str:
    """Text of which the last character may be cut; empty if it is not UTF-8."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return ""


def _is_text(text: str) -> bool:
    return bool(text) and all(char.isprintable() or char.isspace() for char in text)


def _count_scans(content: bytes) -> int:
    """How often the pixels of a JPEG are passed over; what follows its end, as in a motion photograph, is left out."""
    if content.count(b"\xff\xda") <= _MAX_SCANS:
        return 0
    scans, at = 0, 2
    while (marker := _JPEG_MARKER.search(content, at)) and content[marker.end() - 1] != 0xD9:
        scans += content[marker.end() - 1] == 0xDA
        at = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans


def _check_tiles(image: TiffImageFile, max_pixels: int) -> None:
    """The smallest of TIFFs may be cut into tiles of gigabytes, or into millions of strips."""
    width, height = (image.tag_v2.get(tag, 1) for tag in (TILEWIDTH, TILELENGTH))
    if width * height > max_pixels:
        raise _RefusedError(f"expected at most {max_pixels} pixels, its header says tiles of {width} x {height}")
    if len(image.tile) > _MAX_TILES:
        raise _RefusedError(f"expected a TIFF of at most {_MAX_TILES} tiles or strips, found {len(image.tile)}")


def _decode_fast(image: Image.Image, content: bytes, decode: Decode | None) -> Pixels | None:
    """[H, W, 3], or None if it is for Pillow to decode, or to refuse."""
    if decode is None or image.format not in (JpegImageFile.format, MpoImageFile.format):
        return None
    if image.mode not in ("L", "RGB"):
        return None
    try:
        pixels = decode(content)
    except (ValueError, RuntimeError):
        return None
    return pixels if pixels.shape == (image.height, image.width, 3) else None


def _in_plain_mode(image: Image.Image) -> Image.Image:
    """A loaded picture of any mode as RGB, RGBA, or deep grey as it is."""
    if image.mode in _DEEP_GREY or (image.mode == "RGB" and "transparency" not in image.info):
        return image
    if image.mode == "La":
        image = image.convert("LA")
    transparent = image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info
    return image.convert("RGBA" if transparent else "RGB")


def _to_array(image: Image.Image) -> Pixels:
    """[H, W, 3] of a picture in plain mode."""
    if image.mode in _DEEP_GREY:
        return np.repeat(_to_eight_bits(image)[:, :, None], 3, axis=2)
    if image.mode == "RGBA":
        layer, image = image, Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    return np.array(image)


def _to_eight_bits(image: Image.Image) -> Pixels:
    """Grey of more than 8 bits as [H, W], rounded."""
    deep = np.asarray(image)
    low, high = deep.min(), deep.max()
    if image.mode.startswith("I;16"):
        white = 65535
    elif image.mode == "I" and low >= 0 and high <= 65535:
        white = 255 if high <= 255 else 65535
    elif image.mode == "F" and low >= 0 and high <= 255:
        white = 1 if high <= 1 else 255
    else:
        expected = "0..65535" if image.mode == "I" else "0..255"
        raise _RefusedError(f"expected 32-bit grey values within {expected}, found {low} to {high}; scale them")
    grey = np.empty(deep.shape, np.uint8)
    for row, values in enumerate(deep):  # by rows: float64 of the whole picture would be its largest copy
        grey[row] = np.rint(values * (255 / white))
    if isinstance(clear := image.info.get("transparency"), int):
        grey[deep == clear] = 255
    return grey


def _orientation(image: Image.Image) -> int:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # Pillow raises almost anything on broken EXIF, with which the pixels are still good
        return 1
    return orientation if isinstance(orientation, int) else 1


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    """Undo an EXIF orientation (1 to 8, others count as 1): a view of [H, W, 3]."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


@contextmanager
def _errors_named(name: str) -> Iterator[None]:
    try:
        with strictly():
            yield
    except _RefusedError as error:
        raise ValueError(_message(name, str(error))) from error
    except Exception as error:  # Pillow raises almost anything on a malformed file
        reason = str(error) if isinstance(error, (OSError, SyntaxError)) else f"{type(error).__name__} {error}"
        raise ValueError(_message(name, f"expected a readable picture, got {reason.strip()}")) from error


def _message(name: str, reason: str) -> str:
    """One short line that is safe to print, whatever a file's name and content put into it."""
    if len(name) > _MAX_NAME:
        name = f"{name[: _MAX_NAME // 2]}...{name[-_MAX_NAME // 2 :]}"
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in f"{name}: {reason}")
    return line if len(line) <= _MAX_MESSAGE else f"{line[: _MAX_MESSAGE - 3]}..."
