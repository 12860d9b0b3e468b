import numpy as np
import pytest

from vistok.data.scenes.attributes import ATTRIBUTES, VIEWS, labelled_scenes
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of


@pytest.mark.parametrize("view", VIEWS)
def test_labels_say_what_the_layout_of_each_picture_holds(view: str) -> None:
    seeds = seeds_of("test")[3:9]
    found = labelled_scenes(view, seeds, 64)
    assert found.images.shape == (6, 64, 64, 3) and found.images.dtype == np.uint8
    assert set(found.labels) == {name for name, about in ATTRIBUTES.items() if about.view == view}
    for row, seed in enumerate(seeds):
        layout = portrait(seed) if view == "portrait" else make_layout(seed)
        assert np.array_equal(found.images[row], render(layout, 64).image)
        said = {name: ATTRIBUTES[name].classes[labels[row]] for name, labels in found.labels.items()}
        nearest = layout.things[0]
        if view == "portrait":
            expected = {"color": nearest.color, "shape": nearest.shape}
            column = str(1 + sum(nearest.x >= border for border in (0.375, 0.5, 0.625)))
            assert said == expected | {"texture": nearest.texture, "size": nearest.size, "column": column}
        else:
            expected = {"nearest_color": nearest.color, "nearest_shape": nearest.shape}
            assert said == expected | {"count": str(len(layout.things))}


def test_an_unknown_view_or_no_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="view of portrait, scene"):
        labelled_scenes("landscape", seeds_of("test")[:1], 64)
    with pytest.raises(ValueError, match="and seeds"):
        labelled_scenes("scene", [], 64)
