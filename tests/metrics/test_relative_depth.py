"""Values of a map at points of a picture of another size."""

import numpy as np
import pytest

from vistok.metrics.relative_depth import nearest_point, read_depth

MAP = np.array([[1.0, 2.0], [3.0, 4.0]])


def test_a_point_reads_the_pixel_that_lies_over_it():
    points = [(0, 0), (167.9, 0), (168, 0), (335, 335), (10, 200)]
    assert read_depth(MAP, points, 336).tolist() == [1, 1, 2, 4, 3]
    assert nearest_point(MAP, points, 336) == 3 and nearest_point(MAP, [(0, 0), (1, 1)], 336) == 0


def test_points_outside_and_no_points_are_named():
    with pytest.raises(ValueError, match=r"within 336 x 336 pixels, got \(336, 3\)"):
        read_depth(MAP, [(336, 3)], 336)
    with pytest.raises(ValueError, match="at least one point"):
        nearest_point(MAP, [], 336)
    with pytest.raises(ValueError, match=r"a map \[h, w\], got \[2\]"):
        read_depth(MAP[0], [(0, 0)], 336)
