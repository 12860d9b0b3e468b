import numpy as np

from vistok.data.scenes import KINDS, make_layout, render
from vistok.data.scenes.readings import LEVELS, READINGS, readings_about


def test_readings_are_levels_of_what_the_picture_shows():
    for seed in range(40):
        scene = render(seed)
        named = {f"{t.color} {t.shape}": i for i, t in enumerate(scene.layout.things)}
        for question in readings_about(scene.layout):
            index = named[next(name for name in named if f"the {name} " in question.text)]
            rows, columns = np.nonzero(scene.masks[index])
            low, high = {
                "column": (columns.min() / 96, columns.max() / 96),
                "row": (rows.min() / 96, rows.max() / 96),
                "far": ((scene.depth[scene.masks[index]].mean() - 3.5) / 4,) * 2,
                "large": (0.0, 1.0),
            }[question.kind]
            level = int(question.answer)
            assert np.floor(low * LEVELS) <= level - 1 <= min(LEVELS - 1, np.floor(high * LEVELS)), question


def test_a_larger_radius_never_has_a_smaller_level():
    for seed in range(60):
        layout = make_layout(seed)
        levels = {q.text: int(q.answer) for q in readings_about(layout) if q.kind == "large"}
        sized = [(t.radius, levels[f"how large looks the {t.color} {t.shape} ?"]) for t in layout.things
                 if f"how large looks the {t.color} {t.shape} ?" in levels]  # fmt: skip
        ordered = [level for _, level in sorted(sized)]
        assert ordered == sorted(ordered)


def test_readings_are_for_training_only_and_use_levels_one_to_eight():
    assert not set(READINGS) & set(KINDS)
    answers = {question.answer for seed in range(200) for question in readings_about(make_layout(seed))}
    assert answers == {str(level) for level in range(1, LEVELS + 1)}
