import numpy as np
import pytest
from PIL import Image

from vistok.report.contact_sheet import Column, contact_sheet, write_png


def column(colour, other, size=(120, 60), label="name"):
    return Column(Image.new("RGB", size, colour), Image.new("RGB", size, other), label, f"{label} again")


def bounds(sheet, colour):
    """left, top, right, bottom of all pixels of a colour."""
    rows, cols = np.nonzero((np.asarray(sheet) == colour).all(axis=2))
    return cols.min(), rows.min(), cols.max() + 1, rows.max() + 1


def test_originals_stand_above_their_reconstructions_at_full_resolution():
    sheet = contact_sheet([column((255, 0, 0), (0, 255, 0)), column((0, 0, 255), (255, 255, 0), (80, 90))])
    red, green, blue, yellow = (bounds(sheet, c) for c in [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)])
    assert (red[2] - red[0], red[3] - red[1]) == (120, 60) == (green[2] - green[0], green[3] - green[1])
    assert red[0] == green[0] < red[2] < blue[0] == yellow[0]
    assert red[1] == blue[1] < red[3] < green[1] == yellow[1] and blue[3] < yellow[1]


def test_pictures_larger_than_the_side_are_reduced_in_proportion():
    left, top, right, bottom = bounds(
        contact_sheet([column((255, 0, 0), (0, 0, 0), (400, 200))], side=100), (255, 0, 0)
    )
    assert (right - left, bottom - top) == (100, 50)


def test_a_label_wider_than_its_picture_is_not_cut_off():
    wide = contact_sheet([column((255, 0, 0), (0, 255, 0), (20, 20), "a label much wider than its picture")])
    ink = (np.asarray(wide) < 100).all(axis=2)
    assert ink.any() and not ink[:, -8:].any()
    assert wide.width > contact_sheet([column((255, 0, 0), (0, 255, 0), (20, 20), "a")]).width


def test_labels_are_legible():
    sheet = np.asarray(contact_sheet([column((255, 0, 0), (0, 255, 0), label="Ag")]))
    for top in (bounds(sheet, (255, 0, 0))[1], bounds(sheet, (0, 255, 0))[1]):
        rows = np.nonzero((sheet[top - 30 : top] < 100).all(axis=2).any(axis=1))[0]
        assert rows.max() - rows.min() >= 18  # pixels from the tallest letter's top to the lowest one's foot


def test_nothing_to_show_and_unequal_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one column"):
        contact_sheet([])
    with pytest.raises(ValueError, match=r"'x' to be \(9, 9\), got \(8, 9\)"):
        contact_sheet([Column(Image.new("RGB", (9, 9)), Image.new("RGB", (8, 9)), "x", "y")])


def test_the_png_is_written_whole(tmp_path):
    write_png(Image.new("RGB", (3, 2), "red"), tmp_path / "new" / "sheet.png")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["sheet.png"]
    with Image.open(tmp_path / "new" / "sheet.png") as image:
        assert (image.format, image.size) == ("PNG", (3, 2))
