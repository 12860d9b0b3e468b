"""The health report of a codebook: by hand, and merged equal to one pass."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.metrics.codebook_health import CodebookHealth, health_of
from vistok.quantizers.vq import VQ


def seen(codebook_size: int, *batches: list[int]) -> CodebookHealth:
    health = CodebookHealth.empty(codebook_size)
    for batch in batches:
        health.add(torch.tensor(batch, dtype=torch.int64))
    return health


def test_by_hand() -> None:
    report = seen(5, [0, 0, -1, 3], [3, 1, 3, 3, 0]).report()
    assert report["codes"] == 5 and report["tokens"] == 8
    assert report["usage"] == pytest.approx(3 / 5) and report["dead_codes"] == 2
    assert report["usage_by_tokens"] == [[1, 0.2], [2, 0.2], [4, 0.4], [8, 0.6]]
    p = [3 / 8, 1 / 8, 4 / 8]
    entropy = -sum(x * math.log(x) for x in p)
    assert report["perplexity"] == pytest.approx(math.exp(entropy))
    assert report["bits_per_token"] == pytest.approx(entropy / math.log(2))
    assert json.loads(json.dumps(report)) == report


batches_of_ids = st.lists(st.lists(st.integers(-1, 11), max_size=20), min_size=1, max_size=4)


@settings(max_examples=40, deadline=None)
@given(batches_of_ids, batches_of_ids, st.integers(0, 100))
def test_merged_reports_equal_one_pass_over_both_streams(
    first: list[list[int]], second: list[list[int]], tokens: int
) -> None:
    whole, merged = seen(12, *first, *second), seen(12, *first).merged(seen(12, *second))
    assert torch.equal(whole.counts, merged.counts) and torch.equal(whole.first_seen, merged.first_seen)
    assert whole.report() == merged.report()
    valid = [code for batch in (*first, *second) for code in batch if code >= 0]
    assert whole.usage(tokens) == pytest.approx(len(set(valid[:tokens])) / 12)


def test_restarts_of_dead_codes_are_counted_and_added_up() -> None:
    quantizer = VQ(1, 3, decay=0.5, dead_code_threshold=0.7)
    quantizer.set_codebook(torch.tensor([[0.0], [10.0], [99.0]]))
    health = CodebookHealth.empty(3)
    out = quantizer.train()(torch.tensor([[1.0], [2.0], [9.0], [11.0]]))  # the third code falls to n = 0.5
    health.add(out.indices, restarts=int(out.stats["restarts"]))
    assert health.restarts == 1
    assert health.merged(health).restarts == 2
    assert "restarts" not in quantizer.eval()(torch.zeros(1, 1)).stats


def test_no_more_restarts_are_counted_than_there_are_vectors() -> None:
    quantizer = VQ(2, 10, decay=0.5, dead_code_threshold=0.9)
    quantizer.set_codebook(100 + torch.arange(20.0).reshape(10, 2))
    assert int(quantizer.train()(torch.zeros(3, 2)).stats["restarts"]) == 3


def test_nothing_seen_is_a_report_too() -> None:
    report = CodebookHealth.empty(4).report()
    assert report["usage"] == 0.0 and report["perplexity"] == 1.0 and report["usage_by_tokens"] == []


def test_every_codebook_of_a_quantizer_has_its_own_report() -> None:
    reports = health_of((4, 2), torch.tensor([[[0, 1], [3, 1]], [[0, -1], [-1, -1]]]))
    assert [report.counts.tolist() for report in reports] == [[2, 0, 0, 1], [0, 2]]
    (alone,) = health_of((4,), torch.tensor([[0, 3]]))
    assert alone.tokens == 2


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected ids in 0..3, or -1 for no token, got 0..4"):
        seen(4, [0, 4])
    with pytest.raises(ValueError, match="expected reports of one codebook, got 4 and 5 codes"):
        seen(4).merged(seen(5))
    with pytest.raises(ValueError, match="expected 1..67108864 codes, got 68719476736"):
        CodebookHealth.empty(2**36)
    with pytest.raises(ValueError, match=r"health_of: expected ids \[..., 2\], got \[3\]"):
        health_of((4, 2), torch.zeros(3, dtype=torch.int64))
