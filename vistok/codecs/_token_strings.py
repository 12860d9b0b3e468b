"""Strings of perception tokens, in the order in which the models that have them know them.

AURORA (arXiv:2412.03548), PaliGemma (arXiv:2407.07726), Florence-2 (arXiv:2311.06242). Which ids a language model
gives them is its own matter: look ids up by string.
"""

DEPTH_ENDS = ("<DEPTH_START>", "<DEPTH_END>")
NORMAL_ENDS = ("<NORMAL_START>", "<NORMAL_END>")
POLYGON_ENDS = ("<poly>", "</poly>")
POLYGON_BREAK = "<sep>"


def depth_codes(codes: int = 128) -> tuple[str, ...]:
    """AURORA: `<DEPTH_0>` .., which follow `<DEPTH_START>` and `<DEPTH_END>`."""
    return tuple(f"<DEPTH_{code}>" for code in range(codes))


def normal_codes(codes: int = 256) -> tuple[str, ...]:
    """Surface normals, ours after AURORA's depth: `<NORMAL_0>` .., which follow their two markers."""
    return tuple(f"<NORMAL_{code}>" for code in range(codes))


def pixel_codes(bins: int = 336) -> tuple[str, ...]:
    """AURORA: `<PIXEL_0>` .., coordinates in an image of that many pixels a side."""
    return tuple(f"<PIXEL_{place}>" for place in range(bins))


def loc_codes(bins: int = 1024) -> tuple[str, ...]:
    """PaliGemma: `<loc0000>` .., four digits."""
    return tuple(f"<loc{place:04d}>" for place in range(bins))


def seg_codes(codes: int = 128) -> tuple[str, ...]:
    """PaliGemma: `<seg000>` .., three digits; they follow the loc tokens."""
    return tuple(f"<seg{code:03d}>" for code in range(codes))


def florence_codes(bins: int = 1000) -> tuple[str, ...]:
    """Florence-2: `<loc_0>` .., not padded."""
    return tuple(f"<loc_{place}>" for place in range(bins))
