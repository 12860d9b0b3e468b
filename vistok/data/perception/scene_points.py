"""Things of a rendered scene as points, with how near each is as a code of a scale from far to near.

Made-up ones belong to no scene: names and depths alone, for what can be learned without a picture.
"""

import numpy as np

from vistok.data.perception.markers import Marker, MarkerRules
from vistok.data.scenes.layout import COLORS, DEPTHS, HELD_OUT, SHAPES, Layout, Thing
from vistok.data.scenes.questions import named

_NAMES = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES if (color, shape) not in HELD_OUT)
# Depths are told in shares of the range in which things stand: a contrast of 0.09 is 36 cm.
SCENE_RULES = MarkerRules(counts=(2, 3), labels=("A", "C", "E"), contrast=0.09, tries=20)


def nearness(thing: Thing) -> float:
    """0 at the far end of the range in which things stand, 1 at the near end."""
    return (DEPTHS[1] - thing.depth) / (DEPTHS[1] - DEPTHS[0])


def nearness_code(value: float, codes: int) -> int:
    """The local code of a nearness in 0..1: one of `codes` equal steps, the last the nearest."""
    return min(codes - 1, max(0, int(value * codes)))


def scene_points(
    layout: Layout, rng: np.random.Generator, rules: MarkerRules = SCENE_RULES, side: int = 96
) -> list[Marker] | None:
    """Some things as points at their centres, `depth` their nearness, `name` colour and shape, labels shuffled.

    Only things whose name fits no other thing. None if no draw keeps the contrast, or there are fewer than two.
    """
    things = named(layout.things)
    counts = [count for count in rules.counts if count <= len(things)]
    for _ in range(rules.tries if counts else 0):
        count = int(rng.choice(counts))
        chosen = [things[place] for place in rng.permutation(len(things))[:count]]
        steps = np.diff(sorted(nearness(thing) for thing in chosen))
        if steps.min() >= rules.contrast:
            labels = [rules.labels[place] for place in rng.permutation(count)]
            return [_marker(label, thing, side) for label, thing in zip(labels, chosen, strict=True)]
    return None


def made_up_points(
    rng: np.random.Generator, count: int, contrast: float = SCENE_RULES.contrast, labels: str = "ACE"
) -> list[Marker]:
    """`count` different names of things, none of a held-out pair, with drawn depths at least `contrast` apart.

    Raises: ValueError if there are not as many labels, or no such depths in 0..1.
    """
    if not 0 < count <= len(labels) or not 0 <= contrast * (count - 1) < 1:
        raise ValueError(
            f"made-up points: expected 1 to {len(labels)} points with room for a contrast between them, got {count} "
            f"points and contrast {contrast}"
        )
    # Uniform over all depths that keep the contrast: draw in what is left of the range, then push them apart.
    depths = np.sort(rng.random(count)) * (1 - contrast * (count - 1)) + contrast * np.arange(count)
    names = rng.choice(len(_NAMES), count, replace=False)
    return [
        Marker(label, 0, 0, float(depth), _NAMES[name])
        for label, depth, name in zip(labels, rng.permutation(depths), names, strict=False)
    ]


def _marker(label: str, thing: Thing, side: int) -> Marker:
    return Marker(label, int(thing.x * side), int(thing.y * side), nearness(thing), f"{thing.color} {thing.shape}")
