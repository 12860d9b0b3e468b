import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.data.batching import Batching, FixedBatches, LengthBuckets, PackedBatches

LENGTHS = st.lists(st.integers(1, 20), max_size=120).map(lambda values: np.array(values, np.int64))
WAYS = st.one_of(
    st.builds(FixedBatches, st.integers(1, 9)),
    st.builds(LengthBuckets, st.integers(1, 9), st.integers(1, 5)),
    st.builds(PackedBatches, st.integers(20, 64)),
)


def cut(way: Batching, lengths: np.ndarray, seed: int = 0) -> list[list[int]]:
    batches = way.cut(lengths, np.random.default_rng(seed))
    return [batches.batch(number).tolist() for number in range(len(batches))]


@settings(max_examples=50, deadline=None)
@given(way=WAYS, lengths=LENGTHS)
def test_every_position_is_in_exactly_one_batch_and_no_batch_is_empty(way, lengths):
    batches = cut(way, lengths)
    assert sorted(sum(batches, [])) == list(range(len(lengths)))
    assert all(batches) and batches == cut(way, lengths)


def test_fixed_batches_keep_the_order():
    assert cut(FixedBatches(3), np.ones(7, np.int64)) == [[0, 1, 2], [3, 4, 5], [6]]


@settings(max_examples=40, deadline=None)
@given(lengths=LENGTHS, budget=st.integers(20, 64))
def test_packed_batches_are_as_full_as_the_next_sample_allows(lengths, budget):
    batches = cut(PackedBatches(budget), lengths)
    assert sum(batches, []) == list(range(len(lengths)))
    for batch, following in zip(batches, [*batches, []][1:], strict=True):
        assert lengths[batch].sum() <= budget
        assert not following or lengths[batch].sum() + lengths[following[0]] > budget


def test_length_buckets_waste_a_fraction_of_the_padding_and_stay_random():
    lengths = np.random.default_rng(0).integers(1, 257, 4096)

    def padding(batches: list[list[int]]) -> int:
        return sum(int(len(batch) * lengths[batch].max() - lengths[batch].sum()) for batch in batches)

    bucketed = cut(LengthBuckets(16, 32), lengths)
    assert padding(bucketed) < 0.1 * padding(cut(FixedBatches(16), lengths))
    longest = [int(lengths[batch].max()) for batch in bucketed[:32]]
    assert longest != sorted(longest) and sorted(sum(bucketed[:32], [])) == list(range(512))
    assert bucketed != cut(LengthBuckets(16, 32), lengths, seed=1)


def test_a_sample_that_fits_no_batch_is_named():
    with pytest.raises(ValueError, match="max_tokens=4, the one at position 1 of the epoch has 5"):
        cut(PackedBatches(4), np.array([4, 5]))


@pytest.mark.parametrize("way", [FixedBatches, LengthBuckets, PackedBatches])
def test_empty_batches_are_refused(way):
    with pytest.raises(ValueError, match=">= 1, got 0"):
        way(0)
