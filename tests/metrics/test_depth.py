"""AbsRel, delta_1 and the order of things on maps small enough to work out by hand, and through a codec."""

import math
from typing import Any

import pytest
import torch

import vistok
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.depth import _Orders, abs_rel, delta_1, depth_trip, scene_depth_scores

TRUE = torch.tensor([[2.0, 4.0, 8.0, 10.0], [1.0, 1.0, 1.0, 1.0]])
DECODED = torch.tensor([[2.0, 5.1, 6.0, 9.0], [1.0, 1.0, 1.0, 2.0]])


def test_relative_error_and_share_within_a_quarter():
    torch.testing.assert_close(abs_rel(DECODED, TRUE), torch.tensor([(0 + 1.1 / 4 + 2 / 8 + 1 / 10) / 4, 0.25]))
    assert delta_1(DECODED, TRUE).tolist() == [0.5, 0.75]  # 8 against 6 is a factor of 1.33


def test_a_predicted_depth_below_zero_is_near_nothing():
    predicted = torch.tensor([[-1.0, 0.0, 1.0, 1.1]])
    assert delta_1(predicted, torch.ones(1, 4)).tolist() == [0.5]


def test_maps_that_do_not_fit_or_hold_no_depth_are_refused():
    for predicted, target in ((TRUE, TRUE[:1]), (TRUE, TRUE - 1)):
        with pytest.raises(ValueError, match="maps of one shape and targets > 0"):
            abs_rel(predicted, target)


def test_order_is_read_where_things_show():
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    for place in range(3):
        masks[place, place] = True
    orders = _Orders()
    assert orders.shares() == {"nearest": None, "farthest": None, "pairs": None}
    orders.add(masks[:1], torch.ones(4, 4))
    assert orders.asked["pairs"] == 0
    restored = torch.tensor([2.0, 5.0, 4.0, 9.0])[:, None].expand(4, 4)
    orders.add(masks, restored)
    assert orders.shares() == {"nearest": 1.0, "farthest": 0.0, "pairs": 2 / 3}


class Exact:
    """A codec whose tokens lose nothing but what its range does."""

    def __init__(self, codec: Any) -> None:
        self.codec, self.range, self.image_size, self.codes = codec, codec.range, codec.image_size, codec.codes

    def encode(self, maps: torch.Tensor) -> Any:
        self.seen = self.codec.inputs(maps) * 0.5 + 0.5
        return self.codec.encode(maps)

    def decode(self, tokens: Any) -> torch.Tensor:
        return self.seen


def test_metres_come_back_exactly_where_the_tokens_lose_nothing():
    codec = Exact(vistok.codec("depth_nano"))
    maps = 1 + 9 * torch.rand(2, 100, 90, generator=torch.Generator().manual_seed(0))
    trip = depth_trip(codec, maps)
    assert trip.target.shape == (2, 1, 80, 80)
    torch.testing.assert_close(trip.restored, trip.target)
    rows, columns = ((torch.arange(80) + 0.5) / 80 * side for side in (100, 90))
    torch.testing.assert_close(trip.target[:, 0], maps[:, rows.long()][:, :, columns.long()])
    scores = scene_depth_scores(codec, seeds_of("test")[:6])
    assert scores.abs_rel < 1e-5 and scores.delta_1 == 1
    assert (scores.nearest, scores.farthest, scores.pairs) == (1, 1, 1)


def test_scores_name_their_parts_as_plain_data():
    scores = scene_depth_scores(vistok.codec("depth_nano", pretrained=True), seeds_of("test")[:4])
    report = scores.report()
    assert report["scenes"] == 4 and report["codebook"]["tokens"] == 400 and 0 < report["abs_rel"] < 0.2
    assert math.isclose(report["codebook"]["usage"], 1 - report["codebook"]["dead_codes"] / 128)


def test_no_scene_is_refused():
    with pytest.raises(ValueError, match="at least one seed"):
        scene_depth_scores(vistok.codec("depth_nano"), [])
