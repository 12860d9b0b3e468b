"""The benchmark of quantizers at small sizes: candidates agree, and peaks are those of the allocator."""

import pytest
import torch

from vistok.bench import vq
from vistok.bench.vq import Measured


def test_every_candidate_gives_the_results_and_gradients_of_the_first():
    cases = dict(vq.run(1, vectors=60, codes=50, width=8))
    assert len(cases) == 4
    for timings in cases.values():
        assert timings[0].name == "vistok" and timings[0].ratio == timings[0].peak_ratio == 1.0
        assert all(isinstance(timing, Measured) and timing.difference < 1e-5 for timing in timings)


def test_a_peak_is_what_is_held_at_once_and_not_what_is_made_in_all():
    def three_in_turn():
        for _ in range(3):
            torch.zeros(1000, 1000)

    def two_at_once():
        return torch.zeros(1000, 1000), torch.zeros(1000, 1000)

    assert vq.peak_bytes(three_in_turn) == pytest.approx(4e6, rel=0.01)
    assert vq.peak_bytes(two_at_once) == pytest.approx(8e6, rel=0.01)


def test_a_peak_counts_what_an_op_of_ours_makes_inside():
    z, codebook = torch.randn(300, 64), torch.randn(4096, 64)
    inside = vq.peak_bytes(lambda: torch.ops.vistok.nearest_code(z, codebook, "l2", "exact", "reference"))
    assert inside > 256 * 1024 * 4


def test_streamed_gradients_of_ibq_equal_dense_ones_at_less_than_a_tenth_of_their_peak():
    candidates = vq.propagation_candidates(2048, 2048, 16)
    streamed, dense = vq.measured(candidates, 1)
    assert dense.difference < 1e-5 and dense.peak_megabytes > 10 * streamed.peak_megabytes


@pytest.mark.slow
@pytest.mark.parametrize("entropy_weight", [0.0, 0.05])
def test_a_step_of_ibq_at_its_own_size_peaks_at_less_than_a_tenth_of_the_dense_one(entropy_weight):
    streamed, dense = vq.measured(vq.step_candidates(4096, 4096, 256, entropy_weight), 1)
    assert dense.difference < 1e-5 and dense.peak_megabytes > 10 * streamed.peak_megabytes


def test_sizes_below_one_are_an_error():
    with pytest.raises(ValueError, match="bench vq: expected vectors, codes and width >= 1, got 0, 4096 and 256"):
        next(vq.run(vectors=0))
