"""Questions for training only: where, how far and how large one thing is, as a level from 1 to 8.

A model that has learnt to read these off a thing soon compares two things; without them relations stay at chance for
long. They are not among KINDS, since a level's border cannot be seen.
"""

from vistok.data.scenes.layout import DEPTHS, RADII, Layout, Thing
from vistok.data.scenes.questions import Question, named

LEVELS = 8
READINGS = ("column", "row", "far", "large")


def readings_about(layout: Layout) -> list[Question]:
    """All readings of all things that can be named, reading by reading in the order of READINGS."""
    found: list[Question] = []
    for reading in READINGS:
        for thing in named(layout.things):
            text = _TEXTS[reading].format(f"{thing.color} {thing.shape}")
            found.append(Question(layout.seed, reading, text, _level(reading, thing)))
    return found


_TEXTS = {
    "column": "what column is the {} in ?",
    "row": "what row is the {} in ?",
    "far": "how far is the {} ?",
    "large": "how large looks the {} ?",
}


def _level(reading: str, thing: Thing) -> str:
    share = {
        "column": thing.x,
        "row": thing.y,
        "far": (thing.depth - DEPTHS[0]) / (DEPTHS[1] - DEPTHS[0]),
        "large": (thing.radius - RADII[0]) / (RADII[1] - RADII[0]),
    }[reading]
    return str(1 + min(LEVELS - 1, max(0, int(share * LEVELS))))
