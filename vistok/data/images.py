"""Pictures on disk: which files of a folder are pictures, and one way to open them, whatever their kind."""

from pathlib import Path

from PIL import Image

from vistok.data.decode_image import MAX_PIXELS, decode_image

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


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


def open_image(path: str | Path, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A picture as RGB, EXIF orientation applied, the first frame of an animation, alpha dropped onto white.

    Raises: ValueError naming the file if it is too large or not a readable picture; OSError if it cannot be read.
    """
    return Image.fromarray(decode_image(Path(path).read_bytes(), str(path), max_pixels=max_pixels))
