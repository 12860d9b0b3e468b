"""Where boxes lie in the square that a model sees: as a marked pixel says, and back."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from vistok.layers.box_frame import MODES, BoxFrame

SIZES = [(40, 60), (60, 40), (50, 50), (41, 60)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_boxes_move_with_the_picture(mode, size):
    """A bright rectangle of the picture lies where its box says in what the model sees."""
    height, width = size
    image = torch.zeros(1, 1, height, width)
    image[..., 15:30, 20:28] = 1
    box = torch.tensor([20 / width, 15 / height, 28 / width, 30 / height])
    side = {"squash": 120, "pad": max(size) * 2, "crop": min(size) * 2}[mode]
    frame = BoxFrame(mode, side)
    seen = frame.picture(image, mode="nearest")[0, 0] > 0.5
    rows, columns = seen.any(1).nonzero()[:, 0], seen.any(0).nonzero()[:, 0]
    edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    found = torch.tensor([float(edge) for edge in edges]) / side
    torch.testing.assert_close(frame.of(box, size), found, rtol=0, atol=0.6 / side)


@pytest.mark.parametrize("mode", ["squash", "pad"])
@settings(max_examples=20, deadline=None)
@given(
    corners=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4),
    height=st.integers(1, 2000),
    width=st.integers(1, 2000),
)
def test_nothing_is_lost_where_nothing_is_cut(mode, corners, height, width):
    boxes = torch.tensor([corners], dtype=torch.float64)
    frame = BoxFrame(mode)
    torch.testing.assert_close(frame.back(frame.of(boxes, (height, width)), (height, width)), boxes)


def test_a_crop_cuts_boxes_at_its_edges():
    frame = BoxFrame("crop")
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 0.1, 1.0]])
    cut = frame.of(boxes, (100, 200))
    assert cut.tolist() == [[0, 0, 1, 1], [0, 0, 0, 1]]
    assert frame.back(cut, (100, 200))[0].tolist() == [0.25, 0, 0.75, 1]


def test_points_move_as_boxes_do():
    frame = BoxFrame("pad", 336)
    point, size = torch.tensor([[0.5, 0.0]]), (100, 200)
    assert frame.of(point, size).tolist() == [[0.5, 0.25]]


@pytest.mark.parametrize(("mode", "size"), [("stretch", 336), ("pad", 0)])
def test_settings_that_make_no_square_are_refused(mode, size):
    with pytest.raises(ValueError, match="BoxFrame: expected mode in"):
        BoxFrame(mode, size)


def test_pictures_without_a_size_are_refused():
    with pytest.raises(ValueError, match="1 pixel or more"):
        BoxFrame().of(torch.zeros(1, 4), (0, 10))


def test_whole_numbers_are_refused_since_shares_of_the_sides_are_none():
    with pytest.raises(ValueError, match=r"float in 0\.\.1.*torch.int64"):
        BoxFrame("pad").of(torch.tensor([[0, 0, 1, 1]]), (100, 200))
