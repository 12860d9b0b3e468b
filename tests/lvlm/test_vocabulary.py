"""Local codes to ids and back, whole images among text."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.lvlm.vocabulary import TokenFamily, VocabMap

PLAIN = VocabMap("plain", range(10, 18), begin=(3,), end=(4, 5))
ROWS = VocabMap("rows", (9, 7, 8, 20), begin=(1,), end=(2, 6), row_end=0, size_end=5)
BARE = VocabMap("bare", (30, 12, 31))


@st.composite
def maps(draw: st.DrawFn) -> VocabMap:
    ids = draw(st.lists(st.integers(0, 500), min_size=8, max_size=40, unique=True))
    begin, end = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    markers, codes = ids[:6], tuple(ids[6:])
    return VocabMap(
        "drawn",
        codes,
        tuple(markers[:begin]),
        tuple(markers[2 : 2 + end]),
        draw(st.sampled_from([None, markers[4]])),
        draw(st.sampled_from([None, markers[5]])),
    )


@settings(max_examples=60, deadline=None)
@given(maps(), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3), st.data())
def test_images_come_back_from_among_any_text(vocabulary, height, width, images, data):
    text = list(range(600, 605))
    shape = (height, width) if vocabulary.row_end is not None else (height * width,)
    drawn = st.integers(0, len(vocabulary) - 1)
    pictures, ids = [], [600]
    for _ in range(images):
        codes = torch.tensor(data.draw(st.lists(drawn, min_size=height * width, max_size=height * width)))
        pictures.append(codes.reshape(shape))
        ids += vocabulary.span(pictures[-1], [601, 602] if vocabulary.size_end is not None else ()).tolist()
        ids += data.draw(st.lists(st.sampled_from(text), max_size=3))
    found = vocabulary.find_spans(torch.tensor(ids))
    assert len(found) == images
    for place, codes in zip(found, pictures, strict=True):
        assert torch.equal(vocabulary.read_span(torch.tensor(ids)[place]), codes)


@settings(max_examples=40, deadline=None)
@given(maps())
def test_codes_and_ids_are_a_bijection(vocabulary):
    codes = torch.arange(len(vocabulary))
    ids = vocabulary.to_ids(codes)
    assert ids.tolist() == list(vocabulary.codes)
    assert torch.equal(vocabulary.to_codes(ids), codes)
    every = torch.arange(-3, 520)
    assert every[vocabulary.is_code(every)].tolist() == sorted(vocabulary.codes)


def test_an_image_has_its_markers_and_a_batch_of_images_is_one_tensor():
    codes = torch.tensor([[0, 7, 2], [1, 1, 1]])
    assert PLAIN.span(codes).tolist() == [[3, 10, 17, 12, 4, 5], [3, 11, 11, 11, 4, 5]]


def test_rows_end_and_the_size_stands_in_front():
    ids = ROWS.span(torch.tensor([[0, 1], [2, 3]]), size=[40, 41])
    assert ids.tolist() == [1, 40, 41, 5, 9, 7, 0, 8, 20, 0, 2, 6]
    assert ROWS.read_span(ids).tolist() == [[0, 1], [2, 3]]


def test_runs_of_codes_are_found_where_there_are_no_markers():
    ids = torch.tensor([30, 12, 5, 31, 6, 6, 12])
    assert [ids[place].tolist() for place in BARE.find_spans(ids)] == [[30, 12], [31], [12]]
    assert BARE.find_spans(torch.tensor([5, 6])) == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: PLAIN.to_ids(torch.tensor([0, 8])), r"codes in 0\.\.7, got 0\.\.8"),
        (lambda: PLAIN.to_ids(torch.tensor([-1])), "cut padding"),
        (lambda: PLAIN.to_ids(torch.tensor([0.5])), "integers, got torch.float32"),
        (lambda: PLAIN.to_codes(torch.tensor([10, 3])), "ids of its 8 codes, got 3"),
        (lambda: PLAIN.to_codes(torch.tensor([10_000])), "got 10000"),
        (lambda: PLAIN.span(torch.tensor([0]), size=[1]), "no size"),
        (lambda: ROWS.span(torch.tensor([[0]])), "text with rows and columns"),
        (lambda: ROWS.span(torch.tensor([0]), size=[40]), r"\[\.\.\., h, w\]"),
        (lambda: PLAIN.read_span(torch.tensor([3, 10, 4])), r"between \[3\] and \[4, 5\]"),
        (lambda: PLAIN.read_span(torch.tensor([3, 10, 99, 4, 5])), "got 99"),
        (lambda: ROWS.read_span(torch.tensor([1, 9, 0, 2, 6])), "behind the image's size"),
        (lambda: ROWS.read_span(torch.tensor([1, 5, 9, 7, 0, 9, 0, 2, 6])), "rows of equal length"),
        (lambda: ROWS.read_span(torch.tensor([1, 5, 9, 7, 2, 6])), "rows of equal length"),
        (lambda: PLAIN.find_spans(torch.tensor([8, 3, 10, 4])), "begins at place 1"),
        (lambda: VocabMap("twice", (1, 2, 1)), "each of one code"),
        (lambda: VocabMap("marker", range(4), begin=(2,), end=(9,)), "each of one code"),
        (lambda: VocabMap("below", (-1, 2)), "ids >= 0"),
        (lambda: TokenFamily("twice", ("<a>", "<a>")), "strings that differ"),
        (lambda: TokenFamily("no codes", ("<a>", "<b>"), ("<a>",), ("<b>",)), "at least one code"),
        (lambda: TokenFamily("half", ("<a>", "<b>"), ("<a>",)), "both ends"),
        (lambda: TokenFamily("size", ("<a>",), size_end="<b>"), "both where a size"),
    ],
)
def test_what_does_not_fit_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_maps_are_values():
    assert VocabMap("a", range(4)) == VocabMap("a", range(4)) and len({PLAIN, ROWS, BARE, PLAIN}) == 3
