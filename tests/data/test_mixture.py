from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.mixture import Draw, Mixture

SIZES = st.lists(st.integers(1, 20), min_size=1, max_size=3)
WEIGHTS = st.lists(st.sampled_from([0.3, 0.7, 1, 2.5]), min_size=3, max_size=3)


def draws_of(mixture: Mixture, epochs: int) -> list[Draw]:
    return [mixture.epoch(epoch).at(at) for epoch in range(epochs) for at in range(len(mixture))]


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, weights=WEIGHTS, seed=st.integers(0, 9))
def test_every_store_is_gone_through_again_and_again_and_no_sample_comes_twice_in_a_round(sizes, weights, seed):
    found = draws_of(Mixture(sizes, weights[: len(sizes)], seed=seed), 3)
    assert len(set(found)) == len(found)
    for store, size in enumerate(sizes):
        own = [draw for draw in found if draw.store == store]
        rounds = [draw.round for draw in own]
        assert rounds == [number // size for number in range(len(own))] and rounds[-1] >= 2
        samples = [draw.sample for draw in own]
        assert all(sorted(samples[at : at + size]) == list(range(size)) for at in range(0, len(own) - size + 1, size))


@settings(max_examples=20, deadline=None)
@given(sizes=SIZES, weights=WEIGHTS, samples=st.none() | st.integers(1, 90))
def test_weights_hold_exactly_in_an_epoch_and_nearly_in_every_part_of_it(sizes, weights, samples):
    weights = weights[: len(sizes)]
    mixture = Mixture(sizes, weights, samples=samples)
    total = sum(Fraction(str(weight)) for weight in weights)
    for count, weight in zip(mixture.counts, weights, strict=True):
        assert abs(count - len(mixture) * Fraction(str(weight)) / total) <= (len(sizes) if samples is None else 1)
    if samples is None:
        assert all(count >= size for count, size in zip(mixture.counts, sizes, strict=True))
        assert any(count == size for count, size in zip(mixture.counts, sizes, strict=True))
    else:
        assert len(mixture) == samples
    stores = mixture.epoch(1).stores
    for store, count in enumerate(mixture.counts):
        given_ = np.cumsum(stores == store)
        share = count * np.arange(1, len(stores) + 1) / len(stores)
        assert np.abs(given_ - share).max() <= 1 + len(sizes) * count / len(stores)


def test_without_weights_an_epoch_has_every_sample_of_every_store_once():
    mixture = Mixture([5, 9, 2], seed=3)
    for epoch in range(2):
        found = [mixture.epoch(epoch).at(at) for at in range(len(mixture))]
        assert sorted(found) == [Draw(store, epoch, at) for store, size in enumerate((5, 9, 2)) for at in range(size)]


def test_weights_are_the_decimals_that_were_written():
    assert Mixture([8, 1], [0.8, 0.2]).counts == (8, 2)
    assert Mixture([300, 100], [0.3, 0.1]).counts == (300, 100)
    assert Mixture([1000, 10], [0.9, 0.1], samples=20).counts == (18, 2)


def test_a_store_that_ends_begins_anew_in_another_order_and_goes_on_into_the_next_epoch():
    mixture = Mixture([6, 30], [1, 1], seed=1)
    assert mixture.counts == (30, 30)
    small = [draw for draw in draws_of(mixture, 1) if draw.store == 0]
    orders = [tuple(d.sample for d in small if d.round == turn) for turn in range(5)]
    assert len(set(orders)) == 5 and Counter(d.sample for d in small) == dict.fromkeys(range(6), 5)
    odd = draws_of(Mixture([4, 6], [1, 1]), 2)
    assert [d.round for d in odd if d.store == 0] == [0] * 4 + [1] * 4 + [2] * 4


def test_seed_and_epoch_alone_fix_the_order():
    def order(seed: int, epoch: int) -> list[list[int]]:
        return [values.tolist() for values in Mixture([7, 12], [1, 2], seed=seed).epoch(epoch)]

    assert order(1, 1) == order(1, 1)
    assert len({str(order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)}) == 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (([],), "at least one sample each"),
        (([3, 0],), r"got sizes \[3, 0\]"),
        (([3, 4], [1]), "one positive weight for each of 2 stores"),
        (([3, 4], [1, 0]), "leave a store out"),
        (([3, 4], [1, float("nan")]), "one positive weight"),
    ],
)
def test_what_cannot_be_mixed_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Mixture(*arguments)
    with pytest.raises(ValueError, match="seed >= 0 and samples >= 1"):
        Mixture([3], samples=0)
