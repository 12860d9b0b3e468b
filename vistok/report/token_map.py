"""Tokens as coloured cells, over the picture or as a strip: ids by their digits, vectors by their main directions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vistok.report.inline_picture import inline_cells

Rgb = NDArray[np.uint8]
_ROW = 16


@dataclass(frozen=True)
class TokenMap:
    """Cells over a picture of width x height; they may reach over its border, as padding does."""

    uri: str
    width: float
    height: float
    cells_width: float
    cells_height: float
    text: str


@dataclass(frozen=True)
class TokenStrip:
    """Slots in rows of 16, those without a token left clear."""

    uri: str
    width: int
    height: int
    text: str


def id_colors(ids: NDArray[np.int64], codes: int) -> Rgb:
    """A colour for each id [n] below `codes` -> [n, 3]: its three digits, to the cube root of `codes`, as red, green,
    blue. Codes that are products of a few levels (FSQ) get like colours for like levels."""
    base = max(2, math.ceil(codes ** (1 / 3) - 1e-9))
    digits = np.stack([ids % base, ids // base % base, ids // base**2], 1)
    colors: Rgb = (40 + 200 * digits / (base - 1)).clip(0, 255).astype(np.uint8)
    return colors


def vector_colors(vectors: Sequence[NDArray[np.float32]]) -> list[Rgb]:
    """Colours of several [n, D], one and the same map for all: their first three principal directions as red, green,
    blue, each from the 2nd to the 98th percentile."""
    whole = np.concatenate(vectors).astype(np.float64)
    whole = whole - whole.mean(0)
    _, vectors_of = np.linalg.eigh(whole.T @ whole / max(1, len(whole)))
    axes = vectors_of[:, ::-1][:, :3]
    # An eigenvector's sign is free: the largest entry is taken to be positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), np.arange(axes.shape[1])])
    projected = np.zeros((len(whole), 3))
    projected[:, : axes.shape[1]] = whole @ axes
    low, high = np.percentile(projected, [2, 98], axis=0)
    levels = ((projected - low) / np.maximum(high - low, 1e-12)).clip(0, 1)
    colors = (40 + 200 * levels).astype(np.uint8)
    return np.split(colors, np.cumsum([len(each) for each in vectors])[:-1])


def token_map(colors: Rgb, grid: tuple[int, int], patch: int, size: tuple[int, int], text: str) -> TokenMap:
    """Cells [rows * cols, 3] of a grid of squares of `patch` pixels over a picture of size (height, width)."""
    cells = Image.fromarray(colors.reshape(*grid, 3))
    height, width = size
    side = patch or max(height / grid[0], width / grid[1])
    return TokenMap(inline_cells(cells), width, height, grid[1] * side, grid[0] * side, text)


def token_strip(colors: Rgb, slots: NDArray[np.int64], total: int, text: str) -> TokenStrip:
    """The slots that tokens sit in: colors [n, 3], slots [n] below `total`."""
    rows = math.ceil(total / _ROW)
    cells = np.zeros((rows * _ROW, 4), np.uint8)
    cells[slots, :3] = colors
    cells[slots, 3] = 255
    return TokenStrip(inline_cells(Image.fromarray(cells.reshape(rows, _ROW, 4))), _ROW, rows, text)
