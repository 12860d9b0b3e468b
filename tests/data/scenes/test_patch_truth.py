import numpy as np

from vistok.data.scenes import COLORS, SHAPES, render
from vistok.data.scenes.patch_truth import patch_truth


def test_patches_say_what_most_of_their_covered_pixels_show():
    scene = render(11)
    truth = patch_truth([scene], 8)
    for patch in range(144):
        row, column = divmod(patch, 12)
        cell = scene.instances[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
        counts = np.bincount(cell.ravel(), minlength=9)[1:]
        assert bool(truth.shown[0, patch]) == (counts.max() >= 0.15 * 64)
        if counts.max() >= 0.15 * 64:
            thing = scene.layout.things[int(counts.argmax())]
            assert truth.classes["shape"][0, patch] == SHAPES.index(thing.shape) + 1
            assert truth.classes["color"][0, patch] == COLORS.index(thing.color) + 1
        else:
            assert truth.classes["shape"][0, patch] == 0
    assert truth.count.tolist() == [len(scene.layout.things)]
    assert int(truth.pairs.sum()) == len(set(scene.class_ids.tolist()))
