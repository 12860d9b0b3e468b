"""The benchmark of ops at small sizes: peers answer alike, and vistok comes first."""

import pytest
import torch

from vistok.bench import _lookup_free, _merging, _quantization, _selection
from vistok.bench.timing import in_turn


@pytest.mark.parametrize("size", [(64, 48, 8), (48, 70, 32)])
def test_the_peers_of_nearest_code_find_the_same_codes(size):
    with torch.inference_mode():
        timings = in_turn(_quantization.nearest_candidates(*size), rounds=1)
    assert timings[0].name == "vistok" and timings[0].ratio == 1.0
    assert {"vector-quantize-pytorch", "torch.cdist", "torch matmul"} <= {timing.name for timing in timings}


def test_a_peer_with_other_codes_is_an_error():
    x, codebook = torch.eye(3), torch.eye(3)
    with pytest.raises(AssertionError, match="wrong found other codes"):
        _quantization._check_as_near("wrong", torch.tensor([1, 1, 2]), torch.tensor([0, 1, 2]), x, codebook)


@pytest.mark.parametrize(
    "candidates",
    [
        lambda: _quantization.statistics_candidates(200, 16, 8),
        lambda: _selection.cover_candidates(2, 40, 16, 9),
        lambda: _selection.transition_candidates(20, 32, torch.float32),
        lambda: _selection.attention_candidates(2, 4, 2, 30, 16),
        lambda: _selection.compact_candidates(3, 20, 6, 8),
        lambda: _lookup_free.fsq_candidates(200, (8, 5, 4)),
        lambda: _lookup_free.sign_candidates(200, 7, spherical=False),
        lambda: _lookup_free.sign_candidates(200, 7, spherical=True),
        lambda: _merging.merge_candidates(2, 21, 6, 16, torch.float32),
        lambda: _merging.merge_candidates(2, 20, 7, 16, torch.bfloat16),
        lambda: _merging.match_candidates(2, 20, 7, 16),
    ],
)
def test_the_other_ops_agree_with_their_peers(candidates):
    with torch.inference_mode():
        assert in_turn(candidates(), rounds=1)[0].name == "vistok"


def test_only_rows_on_a_border_may_be_rounded_otherwise(monkeypatch):
    # Of three levels the border above zero: tanh(z) 1.001 = 1/2.
    border = torch.atanh(torch.tensor([[0.5 / 1.001]], dtype=torch.float64))
    assert float(_lookup_free._border_distance(border, (3,))) < 1e-9
    assert float(_lookup_free._border_distance(border / 2, (3,))) > 0.1

    class Shifted(_lookup_free.FSQ):
        def forward(self, z):
            return super().forward(z + 0.05)

    monkeypatch.setattr(_lookup_free, "FSQ", Shifted)
    with pytest.raises(AssertionError, match=r"vector-quantize-pytorch rounds \d+ rows otherwise"):
        _lookup_free.fsq_candidates(200, (8, 5, 4))
