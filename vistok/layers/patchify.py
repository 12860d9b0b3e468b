"""Images as rows of patches and back; the pixels of a patch lie in the order (row, column, channel).

B images, N = h*w patches in raster order, p their side.
"""

from torch import Tensor


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, C, H, W] -> [B, N, p*p*C]. Raises: ValueError unless both sides are multiples of `patch`."""
    batch, channels, height, width = images.shape
    if height % patch or width % patch:
        raise ValueError(f"patchify: expected sides in multiples of patch={patch}, got {height}x{width}")
    cells = images.reshape(batch, channels, height // patch, patch, width // patch, patch)
    return cells.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, patch * patch * channels)


def unpatchify(rows: Tensor, grid: tuple[int, int]) -> Tensor:
    """[B, N, p*p*3] -> [B, 3, h*p, w*p], the inverse of `patchify`. Raises: ValueError unless N = h*w."""
    batch, count, pixels = rows.shape
    patch = round((pixels / 3) ** 0.5)
    if count != grid[0] * grid[1] or 3 * patch * patch != pixels:
        raise ValueError(f"unpatchify: expected [B, {grid[0] * grid[1]}, 3 p^2] for {grid}, got {list(rows.shape)}")
    cells = rows.reshape(batch, *grid, patch, patch, 3)
    return cells.permute(0, 5, 1, 3, 2, 4).reshape(batch, 3, grid[0] * patch, grid[1] * patch)
