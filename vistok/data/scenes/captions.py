"""A sentence for a scene: every thing from the nearest to the farthest, with all its attributes."""

from vistok.data.scenes.layout import COLORS, GLYPHS, SHAPES, SIZES, TEXTURES, Layout, Thing

# Every word that a caption may hold.
WORDS = ("a", "with", "sign", ",", "then", ".", *SIZES, *TEXTURES, *COLORS, *SHAPES, *GLYPHS)


def caption(layout: Layout) -> str:
    """Words separated by spaces: "a large striped red star with sign 7 , then a small plain blue ring ."."""
    return " , then ".join(describe(thing) for thing in layout.things) + " ."


def describe(thing: Thing) -> str:
    """One thing: size, texture, colour, shape and sign."""
    sign = f" with sign {thing.glyph}" if thing.glyph is not None else ""
    return f"a {thing.size} {thing.texture} {thing.color} {thing.shape}{sign}"
