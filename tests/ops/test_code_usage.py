"""Usage and perplexity: by hand, merged, and without a table."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.ops import code_counts, perplexity, usage
from vistok.ops.code_usage import batch_usage


def test_by_hand() -> None:
    counts = code_counts(torch.tensor([[0, 0], [2, -1]]), 4)
    assert counts.tolist() == [2, 0, 1, 0]
    assert float(usage(counts)) == 0.5
    expected = math.exp(-(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3)))
    assert float(perplexity(counts)) == pytest.approx(expected)


def test_masked_ids_are_not_counted_whatever_they_are() -> None:
    counts = code_counts(torch.tensor([1, 999, 1]), 3, torch.tensor([True, False, True]))
    assert counts.tolist() == [0, 2, 0]


def test_nothing_seen_and_everything_seen() -> None:
    assert float(perplexity(torch.zeros(5, dtype=torch.int64))) == 1.0
    assert float(usage(torch.zeros(5, dtype=torch.int64))) == 0.0
    assert float(perplexity(torch.full((5,), 3))) == pytest.approx(5.0)
    assert {name: float(value) for name, value in batch_usage(torch.zeros(0, dtype=torch.int64), 5).items()} == {
        "usage": 0.0,
        "perplexity": 1.0,
    }


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 50), st.lists(st.lists(st.integers(0, 10**6), max_size=30), min_size=1, max_size=4))
def test_counts_of_batches_add_up_to_one_pass(codebook_size: int, batches: list[list[int]]) -> None:
    ids = [torch.tensor(batch, dtype=torch.int64) % codebook_size for batch in batches]
    whole = code_counts(torch.cat(ids), codebook_size)
    added = torch.stack([code_counts(batch, codebook_size) for batch in ids]).sum(0)
    assert torch.equal(whole, added)
    found = batch_usage(torch.cat(ids), codebook_size)
    torch.testing.assert_close(found["usage"], usage(added))
    torch.testing.assert_close(found["perplexity"], perplexity(added))


def test_a_batch_of_a_huge_codebook_needs_no_table() -> None:
    found = batch_usage(torch.tensor([2**60, 5, 2**60, 5]), 2**62)
    assert float(found["perplexity"]) == pytest.approx(2.0)
    assert float(found["usage"]) == pytest.approx(2 / 2**62)
