"""Things of a rendered scene as lettered points, with how near each is as a code of a scale from far to near."""

import numpy as np

from vistok.data.perception.markers import Marker, MarkerRules
from vistok.data.scenes.layout import DEPTHS, Layout, Thing
from vistok.data.scenes.questions import named

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


def _marker(label: str, thing: Thing, side: int) -> Marker:
    return Marker(label, int(thing.x * side), int(thing.y * side), nearness(thing), f"{thing.color} {thing.shape}")
