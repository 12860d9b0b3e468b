"""Florence-2's outlines of several parts."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.protocols import ParseError, Span


def example(codec: Any, generator: torch.Generator) -> list[list[Tensor]]:
    sizes = [[3], [4, 6], [5]]
    return [[torch.rand(corners, 2, generator=generator) for corners in thing] for thing in sizes]


def labelled(codec: Any) -> bool:
    return True


def codec() -> Any:
    return vistok.codec("loc1000_polygons")


def test_parts_are_kept_apart():
    triangle = torch.tensor([[0.0, 0.0], [0.5, 0.0], [0.5, 0.5]])
    tokens = codec().encode([[triangle, triangle + 0.25]])
    (text,) = codec().to_text(tokens, ["cat"])
    assert text == (
        "cat<poly><loc_0><loc_0><loc_500><loc_0><loc_500><loc_500>"
        "<sep><loc_250><loc_250><loc_750><loc_250><loc_750><loc_750></poly>"
    )
    ((first, second),) = codec().decode(tokens)
    torch.testing.assert_close(first, triangle, rtol=0, atol=5.1e-4)
    torch.testing.assert_close(second, triangle + 0.25, rtol=0, atol=5.1e-4)


@pytest.mark.slow
def test_transformers_reads_the_same_polygons():
    from transformers.models.florence2.processing_florence2 import Florence2PostProcessor

    theirs: Any = object.__new__(Florence2PostProcessor)
    theirs.quantize_bins = (1000, 1000)
    thing = [torch.rand(5, 2, generator=torch.Generator().manual_seed(0)), torch.rand(3, 2)]
    tokens = codec().encode([thing])
    (text,) = codec().to_text(tokens, ["cat"])
    (read,) = theirs.parse_description_with_polygons_from_text_and_spans(text, image_size=(1000, 1000))
    assert read["cat_name"] == "cat"
    ours = [(part * 1000 + 1e-3).int().flatten().tolist() for part in codec().decode(tokens)[0]]
    assert read["polygons"] == ours


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<poly><loc_1><loc_2><loc_3><loc_4></poly>", "3 or more pairs x y, got one of 4"),
        ("<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><loc_7></poly>", "got one of 7"),
        ("<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6><sep></poly>", "got one of 0"),
        ("<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_1000></poly>", "another token"),
        ("<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6>", "between <poly> and </poly>"),
        ("<loc_1><loc_2></poly>", "between <poly> and </poly>"),
    ],
)
def test_what_is_no_outline_says_why(text, reason):
    (error,) = codec().parse(text)
    assert isinstance(error, ParseError) and reason in error.reason


def test_an_outline_that_breaks_off_does_not_take_the_next_one_with_it():
    whole = "<poly><loc_1><loc_2><loc_3><loc_4><loc_5><loc_6></poly>"
    broken, span = codec().parse(f"<poly><loc_1><loc_2>{whole}")
    assert isinstance(broken, ParseError) and isinstance(span, Span)


@pytest.mark.parametrize(
    ("things", "message"),
    [
        ([[]], "at least one polygon of thing 0"),
        ([[torch.rand(2, 2)]], "3 or more"),
        ([[torch.rand(4, 3)]], "3 or more"),
        ([[torch.tensor([[0, 0], [1, 0], [1, 1]])]], "expected floats"),
    ],
)
def test_what_has_no_outline_is_refused(things, message):
    with pytest.raises(ValueError, match=message):
        codec().encode(things)
