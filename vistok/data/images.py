"""Pictures on disk: which files of a folder are pictures, and one way to open them, whatever their kind."""

from pathlib import Path

from PIL import Image, ImageOps

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
MAX_PIXELS = 178_956_970  # Pillow's own limit for an error, checked from the header


def list_images(source: str | Path) -> list[Path]:
    """The pictures below a folder (sorted by path), or the one file given.

    Raises: FileNotFoundError if there is no such path; ValueError if it holds no picture.
    """
    root = Path(source)
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {root}")
    if root.is_file():
        return [root]
    found = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ValueError(f"{root}: expected pictures ({', '.join(SUFFIXES)}), found none")
    return found


def reduced(image: Image.Image, side: int) -> Image.Image:
    """The picture resized (Lanczos) to a shorter side of `side` pixels."""
    short = min(image.size)
    size = (round(image.width * side / short), round(image.height * side / short))
    return image.resize(size, Image.Resampling.LANCZOS)


def open_image(path: str | Path) -> Image.Image:
    """A picture as RGB, EXIF orientation applied, the first frame of an animation, alpha dropped onto white.

    Raises: ValueError naming the file if it is too large or not a readable picture.
    """
    try:
        with Image.open(path) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"{path}: expected at most {MAX_PIXELS} pixels, header says {image.size}")
            upright = ImageOps.exif_transpose(image)
            if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
                layer = upright.convert("RGBA")
                return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
            if upright.mode.startswith("I;16"):  # convert() would clip 16 bits at 255
                return upright.convert("I").point(lambda value: value / 257).convert("L").convert("RGB")
            return upright.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path}: expected a readable picture, got {error}") from error
