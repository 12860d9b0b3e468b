"""Bins of three published models: their rules, error bounds, what is left of a box, and the text around it."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

import vistok
from vistok.protocols import ParseError, Span

NAMES = ("pixel336", "loc1024", "loc1000")
BINS = {"pixel336": 336, "loc1024": 1023, "loc1000": 1000}


def example(codec: Any, generator: torch.Generator) -> Tensor:
    corners = torch.rand(4, 2, 2, generator=generator).sort(dim=1).values
    return corners.flatten(1)


def labelled(codec: Any) -> bool:
    return bool(codec.style.label)


def codec(name: str, **options: Any) -> Any:
    return vistok.codec(name, **options)


def random_boxes(count: int, seed: int = 0) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return corners.sort(dim=1).values.flatten(1)


def round_trip(name: str, boxes: Tensor, **options: Any) -> Tensor:
    built = codec(name, **options)
    decoded: Tensor = built.decode(built.encode(boxes)).double()
    return decoded


@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_at_most_half_a_bin(name):
    boxes = random_boxes(100_000)
    error = (round_trip(name, boxes) - boxes).abs()
    half = 0.5 / BINS[name] + 1e-7
    if name == "pixel336":
        inner = boxes <= 335.5 / 336
        assert float(error[inner].max()) <= half and float(error.max()) <= 2 * half
        assert float(error.max()) > 1.8 * half, "the last edge is no bin"
    else:
        assert float(error.max()) <= half


def test_the_floor_reading_of_pixels_is_half_a_pixel_everywhere():
    boxes = random_boxes(100_000)
    error = (round_trip("pixel336", boxes, rounding="floor") - boxes).abs()
    assert float(error.max()) <= 0.5 / 336 + 1e-7


@pytest.mark.parametrize(
    ("name", "means"),
    [
        ("pixel336", (0.863, 0.943, 0.971, 0.990)),
        ("loc1024", (0.953, 0.981, 0.990, 0.997)),
        ("loc1000", (0.952, 0.980, 0.990, 0.997)),
    ],
)
def test_overlap_after_a_round_trip(name, means):
    for side, expected in zip((0.02, 0.05, 0.1, 0.3), means, strict=True):
        corner = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * (1 - side)
        boxes = torch.cat((corner, corner + side), 1)
        again = round_trip(name, boxes)
        both = (torch.minimum(boxes[:, 2:], again[:, 2:]) - torch.maximum(boxes[:, :2], again[:, :2])).clamp(min=0)
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(1) + (again[:, 2:] - again[:, :2]).prod(1)
        overlap = both.prod(1) / (areas - both.prod(1))
        assert float(overlap.mean()) == pytest.approx(expected, abs=0.0015)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(corners=st.lists(st.floats(0, 1, width=32), min_size=4, max_size=4))
def test_decoded_boxes_are_boxes_and_have_the_same_tokens(name, corners):
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    built = codec(name)
    tokens = built.encode(torch.tensor([[x1, y1, x2, y2]]))
    decoded = built.decode(tokens)
    assert torch.equal(built.encode(decoded).indices, tokens.indices)
    assert float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_halves_go_to_the_even_bin():
    values = torch.tensor([[0.5, 1.5, 2.5, 3.5]], dtype=torch.float64)
    assert codec("loc1024").encode(values / 1023).indices.tolist() == [[2, 0, 4, 2]]
    assert codec("pixel336").encode(values / 336).indices.tolist() == [[0, 2, 2, 4]]


@pytest.mark.parametrize(("name", "last"), [("pixel336", 335), ("loc1024", 1023), ("loc1000", 999)])
def test_the_whole_picture_and_a_box_without_extent(name, last):
    built = codec(name)
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0]])
    tokens = built.encode(boxes)
    assert tokens.indices[0].tolist() == [0, 0, last, last]
    assert all(isinstance(span, Span) for text in built.to_text(tokens) for span in built.parse(text))


@pytest.mark.slow
@pytest.mark.parametrize("size", [(640, 480), (333, 1000), (17, 2000)])
def test_florence_bins_are_those_of_transformers(size):
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    theirs: Any = object.__new__(Florence2PostProcessor)
    theirs.quantize_bins = (1000, 1000)
    draw = torch.Generator().manual_seed(0)
    sides = torch.tensor([*size, *size], dtype=torch.float32)
    corners = torch.stack([torch.randint(0, side + 1, (500, 2), generator=draw) for side in size], 2)
    pixels = corners.sort(dim=1).values.flatten(1).float()
    built = codec("loc1000")
    tokens = built.encode(pixels / sides)
    assert torch.equal(tokens.indices, theirs.quantize(pixels, size).long())
    # They cut the middle of a bin to a whole pixel below.
    below = built.decode(tokens) * sides - theirs.dequantize(tokens.indices, size)
    assert float(below.min()) > -1e-3 and float(below.max()) < 1 + 1e-3


def test_published_texts():
    boxes = torch.tensor([[0.25, 0.5, 0.75, 1.0], [0.0, 0.0, 0.5, 0.5]])
    built = codec("pixel336")
    assert built.to_text(built.encode(boxes))[0] == "(<PIXEL_84>,<PIXEL_168>,<PIXEL_252>,<PIXEL_335>)"
    built = codec("loc1024")
    assert built.joined(built.encode(boxes), ["cat", "dog"]) == (
        "<loc0512><loc0256><loc1023><loc0767> cat ; <loc0000><loc0000><loc0512><loc0512> dog"
    )
    built = codec("loc1000")
    assert built.joined(built.encode(boxes), ["cat", ""]) == (
        "cat<loc_250><loc_500><loc_750><loc_999><loc_0><loc_0><loc_500><loc_500>"
    )


def test_boxes_of_florence_behind_one_another_share_their_label():
    found = codec("loc1000").parse(
        "cat<loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7><loc_8>dog<loc_0><loc_0><loc_9>"
    )
    assert [(span.codes, span.label) for span in found[:2]] == [((1, 2, 3, 4), "cat"), ((5, 6, 7, 8), "cat")]
    assert found[2] == ParseError("expected 4 tokens in a row, got 3", 62, 83)


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("pixel336", "(<PIXEL_1>,<PIXEL_2>,<PIXEL_3>)", "expected 4 tokens in a row, got 3"),
        ("pixel336", "<PIXEL_1>,<PIXEL_2>,<PIXEL_3>,<PIXEL_4>", "around the tokens"),
        ("pixel336", "(<PIXEL_1>,<PIXEL_2>,<PIXEL_3>,<PIXEL_336>)", "got '<PIXEL_336>'"),
        ("pixel336", "(<PIXEL_1>,<PIXEL_2>,<PIXEL_0>,<PIXEL_4>)", "corners in order"),
        ("loc1024", "<loc0001><loc0002><loc0003><loc0004><loc0005>", "got 5"),
        ("loc1024", "<loc0001><loc0002><loc0003><loc_4>", "got '<loc_4>'"),
        ("loc1024", "<loc0009><loc0002><loc0003><loc0004> cat", "corners in order"),
        ("loc1024", "<loc0001><loc0002><loc0003><loc00", "got '<loc00'"),
    ],
)
def test_what_is_no_box_says_why(name, text, reason):
    (error,) = codec(name).parse(text)
    assert isinstance(error, ParseError) and reason in error.reason


def test_other_tokens_are_no_part_of_a_label():
    (span,) = codec("loc1024").parse("<bos><loc0001><loc0002><loc0003><loc0004><seg001><seg002> cat<eos>")
    assert isinstance(span, Span) and span.label == ""
    (span,) = codec("loc1024").parse("<loc0001><loc0002><loc0003><loc0004> cat<eos>")
    assert isinstance(span, Span) and span.label == "cat"
    (span,) = codec("loc1000").parse("</s><s>cat<loc_1><loc_2><loc_3><loc_4></s>")
    assert isinstance(span, Span) and span.label == "cat"


def test_spaces_inside_a_box_are_read_over():
    (span,) = codec("pixel336").parse("at ( <PIXEL_1> , <PIXEL_2>,<PIXEL_3>, <PIXEL_4> ).")
    assert isinstance(span, Span) and span.codes == (1, 2, 3, 4) and (span.start, span.stop) == (3, 49)


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (torch.tensor([[0.5, 0.0, 0.4, 1.0]]), "x1 <= x2 and y1 <= y2"),
        (torch.tensor([[10.0, 20.0, 30.0, 40.0]]), "divide pixels by the size"),
        (torch.tensor([[0.0, 0.0, 1.0, float("nan")]]), "finite"),
        (torch.tensor([0.0, 0.0, 1.0, 1.0]), r"expected \[N, 4\]"),
        (torch.tensor([[0, 0, 1, 1]]), "floats"),
    ],
)
def test_what_is_no_box_is_refused(boxes, message):
    with pytest.raises(ValueError, match=message):
        codec("pixel336").encode(boxes)


def test_unknown_styles_and_rules_are_refused():
    with pytest.raises(ValueError, match="style: expected one of aurora, paligemma, florence"):
        codec("pixel336", style="kosmos")
    with pytest.raises(ValueError, match="a rule in"):
        codec("pixel336", rounding="up")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_values_of_sixteen_bits_go_to_the_bins_that_they_lie_in(dtype):
    codec = vistok.codec("loc1000")
    corners = torch.tensor([[0.0, 0.0625, 0.5, 1.0]], dtype=dtype)  # exact in 16 bits
    assert codec.encode(corners).indices.tolist() == [[0, 62, 500, 999]]


def test_no_bins_are_refused_rather_than_taken_for_those_of_the_style():
    with pytest.raises(ValueError, match="at least 2"):
        vistok.codec("pixel336", bins=0)


@pytest.mark.parametrize("name", NAMES)
def test_a_text_without_boxes_is_no_box(name):
    codec = vistok.codec(name)
    tokens = codec.tokens([span for span in codec.parse("nothing here") if isinstance(span, Span)])
    assert codec.decode(tokens).shape == codec.encode(torch.zeros(0, 4)).indices.shape == (0, 4)
