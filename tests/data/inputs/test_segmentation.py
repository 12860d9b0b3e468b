import numpy as np
import pytest
from skimage.draw import polygon

from vistok.data.inputs.segmentation import counts_in, filled


def text_of(counts: list[int]) -> str:
    """As cocoapi's rleToString does it, written anew."""
    text = ""
    for at, count in enumerate(counts):
        value = count - counts[at - 2] if at > 2 else count
        while True:
            group, value = value & 31, value >> 5
            more = value != (-1 if group & 16 else 0)
            text += chr(48 + group + 32 * more)
            if not more:
                break
    return text


def test_run_lengths_as_text_are_those_that_pycocotools_gives():
    counts = [6, 1, 40, 4, 5, 4, 5, 4, 21]
    assert counts_in("61X13mN000`0") == counts == counts_in(b"61X13mN000`0")
    mask = filled({"counts": "61X13mN000`0", "size": [9, 10]}, (9, 10))
    assert mask.T.reshape(-1).nonzero()[0].tolist() == [6, *range(47, 51), *range(56, 60), *range(65, 69)]
    assert np.array_equal(filled({"counts": counts, "size": [9, 10]}, (9, 10)), mask)


def test_any_run_lengths_come_back_from_their_text():
    draw = np.random.default_rng(0)
    for _ in range(50):
        counts = draw.integers(0, 10 ** draw.integers(1, 8), draw.integers(1, 20)).tolist()
        assert counts_in(text_of(counts)) == counts


@pytest.mark.parametrize("text", ["", "6", "6 1", "61X", "6~1", "o" * 30, "ü"])
def test_text_that_is_no_run_lengths_of_the_size_is_told(text):
    with pytest.raises(ValueError, match="run lengths: expected"):
        filled({"counts": text, "size": [9, 10]}, (9, 10))


def test_a_polygon_holds_the_pixels_whose_centre_is_in_it():
    mask = filled([[1, 2, 4, 2, 4, 5, 1, 5]], (6, 8))
    expected = np.zeros((6, 8), bool)
    expected[2:5, 1:4] = True
    assert np.array_equal(mask, expected)
    assert filled([[0, 0, 8, 0, 8, 6, 0, 6]], (6, 8)).all()
    assert filled([[-50, -50, 80, -50, 80, 60, -50, 60]], (6, 8)).all()  # what is outside is cut off


def test_two_polygons_are_one_thing_and_one_without_a_centre_is_its_nearest_pixel():
    assert filled([[0, 0, 2, 0, 2, 2, 0, 2], [4, 4, 6, 4, 6, 6, 4, 6]], (8, 8)).sum() == 8
    thin = filled([[3.1, 1.1, 3.2, 1.1, 3.2, 1.2]], (4, 5))
    assert thin.sum() == 1 and thin[1, 3]


def test_a_polygon_that_lies_elsewhere_is_told_and_one_on_the_edge_is_not():
    for elsewhere in ([20, 2, 30, 2, 30, 4], [2, -9, 4, -9, 4, -5]):
        with pytest.raises(ValueError, match="expected corners in the picture of 8 x 6, got"):
            filled([elsewhere], (6, 8))
    assert filled([[8.2, 2, 8.4, 2, 8.4, 3]], (6, 8)).nonzero() == (2, 7)


def test_outlines_of_any_shape_are_those_of_another_library():
    draw = np.random.default_rng(0)
    for _ in range(10):
        angles = np.sort(draw.uniform(0, 2 * np.pi, 9))
        corners = 100 + draw.uniform(40, 90, (9, 1)) * np.stack((np.cos(angles), np.sin(angles)), 1)
        theirs = np.zeros((200, 200), bool)
        theirs[polygon(corners[:, 1] - 0.5, corners[:, 0] - 0.5, theirs.shape)] = True  # its pixels are points
        assert np.array_equal(filled([corners.reshape(-1).tolist()], (200, 200)), theirs)


@pytest.mark.parametrize(
    "wrong", [None, [], "x", [[1, 2, 3]], [[1, 2, 3, 4]], [["a"] * 6], [[1, 2, 3, 4, 5, float("nan")]], 5]
)
def test_what_is_neither_is_told(wrong):
    with pytest.raises(ValueError, match="expected"):
        filled(wrong, (4, 4))


def test_run_lengths_of_another_size_are_told():
    with pytest.raises(ValueError, match=r"expected those of 4 x 5 pixels \(H x W\), got \[5, 4\]"):
        filled({"counts": [20], "size": [5, 4]}, (4, 5))
    with pytest.raises(ValueError, match="numbers >= 0 that make 4 x 5"):
        filled({"counts": [10, -1, 11], "size": [4, 5]}, (4, 5))
