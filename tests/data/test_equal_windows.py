"""Windows of equal bits: the coder by hand, any ids come back, each window decodes alone."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.equal_windows import DigitModel, decode_windows, digit_sizes, encode_windows
from vistok.layers.digit_codes import join_digits


def even(sizes):
    """A model to which all digits are equally likely."""
    return DigitModel.fit([], sizes)


def test_the_coder_by_hand():
    # 16 bits, four symbols of 1024 out of 4096 each: two bits a symbol, so eight symbols fill a window.
    model = DigitModel((4,), (torch.full((5, 1, 1, 4), 1024),))
    ids = torch.tensor([0, 1, 2, 3, 3, 2, 1, 0, 3])
    assert encode_windows(ids, model, 16).tolist() == [[0b0001101111100100], [0b1100000000000000]]


def test_a_window_ends_at_a_number_that_is_no_symbols():
    # Three equal symbols in 16 bits: 3^10 = 59049 < 65536 < 3^11, so ten fit, or one less where rounding takes it.
    model = DigitModel((3,), (torch.full((4, 1, 1, 3), 1000),))
    ids = torch.zeros(1000, dtype=torch.int64)
    windows = encode_windows(ids + torch.arange(1000) % 3, model, 16)
    assert 1000 / 10 <= len(windows) <= 1000 / 9 + 1
    assert torch.equal(decode_windows(windows, model, 16, 1000), ids + torch.arange(1000) % 3)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_any_ids_come_back(data):
    sizes = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    codes = int(np.prod(sizes))
    seen = data.draw(st.lists(st.integers(0, codes - 1), max_size=30))
    ids = torch.tensor(data.draw(st.lists(st.integers(0, codes - 1), max_size=60)), dtype=torch.int64)
    bits = data.draw(st.sampled_from([16, 32, 64, 128, 1024]))
    model = DigitModel.fit([torch.tensor(seen, dtype=torch.int64)], sizes)
    words = encode_windows(ids, model, bits)
    assert words.shape[1] == bits // 16
    assert torch.equal(decode_windows(words, model, bits, len(ids)), ids)


def test_each_window_decodes_alone():
    model = even((4, 4))
    ids = torch.randint(16, (40,), generator=torch.Generator().manual_seed(0))
    words = encode_windows(ids, model, 32)
    assert len(words) == 5  # 8 ids of 4 bits each
    for number, row in enumerate(words):
        assert torch.equal(decode_windows(row[None], model, 32, 8), ids[8 * number : 8 * number + 8])


def test_a_model_that_knows_the_ids_needs_fewer_windows_and_comes_back_from_its_record():
    sizes = (8, 5)
    ids = join_digits(torch.stack([torch.arange(400) % 8, torch.arange(400) % 5], -1), sizes)
    known = DigitModel.fit([ids], sizes)
    back = DigitModel.from_record(known.record())
    assert all(torch.equal(one, other) for one, other in zip(known.tables, back.tables, strict=True))
    few, many = (len(encode_windows(ids, model, 64)) for model in (back, even(sizes)))
    assert few < many / 2


def test_frequencies_are_counted_and_none_is_zero():
    table = DigitModel.fit([torch.tensor([0, 1, 0, 1, 0, 1, 0, 1])], (2,)).tables[0][:, 0, 0]
    assert bool((table.sum(-1) <= 4096).all()) and int(table.min()) >= 1
    assert table[0, 1] > 2 * table[0, 0] and table[1, 0] > 2 * table[1, 1]  # behind 0 comes 1, behind 1 comes 0


@pytest.mark.parametrize(
    ("codes", "sizes"), [(2, (2,)), (16, (16,)), (17, (16, 2)), (64000, (16, 16, 16, 16)), (1, (2,))]
)
def test_digits_of_at_most_16_hold_every_id(codes, sizes):
    assert digit_sizes(codes) == sizes and int(np.prod(sizes)) >= codes


def test_what_cannot_be_coded_is_told():
    model = even((4,))
    words = encode_windows(torch.tensor([1, 2, 3]), model, 16)
    with pytest.raises(ValueError, match="multiple of 16"):
        encode_windows(torch.tensor([1]), model, 20)
    with pytest.raises(ValueError, match="got -1; leave padding away"):
        encode_windows(torch.tensor([1, -1]), model, 16)
    with pytest.raises(ValueError, match="expected 100 ids in 1 windows"):
        decode_windows(words, model, 16, 100)
    with pytest.raises(ValueError, match="expected 1 ids in 2 windows"):
        decode_windows(np.concatenate([words, words]), model, 16, 1)
    with pytest.raises(ValueError, match=r"expected words \[w, 2\]"):
        decode_windows(words, model, 32, 3)
    with pytest.raises(ValueError, match="sizes and frequencies as they were written"):
        DigitModel.from_record({"sizes": [4], "frequencies": "no"})
    with pytest.raises(ValueError, match="expected frequencies"):
        DigitModel((4,), (torch.zeros(5, 1, 1, 4, dtype=torch.int64),))


@pytest.mark.parametrize("sizes", [(), (0, 4), (-1, 5), (5000,), (256, 256, 4)])
def test_alphabets_that_make_no_model_are_told(sizes):
    with pytest.raises(ValueError, match="smaller digits"):
        DigitModel.fit([], sizes)


@pytest.mark.slow
def test_more_ids_than_single_precision_counts_are_counted():
    half = 1 << 20
    ids = torch.cat([torch.zeros(half, dtype=torch.int64), torch.ones(3 * half, dtype=torch.int64)])
    table = DigitModel.fit([ids] * 3, (2,)).tables[0]
    # Three of four ids are 1; behind an absent one each counts three times, 3 * 9 * 2^20 > 2^24.
    assert abs(int(table[-1, 0, 0, 1]) - 3 * 1024) < 8
