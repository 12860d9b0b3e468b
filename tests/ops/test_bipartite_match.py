"""Bipartite match: a plain form of the paper's algorithm, items of a batch on their own, processors, mistakes."""

import ctypes
import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import bipartite_match, merge
from vistok.ops.bipartite_match import _op
from vistok.ops.cpu import library

BACKENDS = ["reference", "cpu"]
ARCHITECTURES = ["native"]
if platform.machine() == "x86_64":
    ARCHITECTURES += ["x86-64", "x86-64-v3"][: 1 + torch.backends.cpu.get_cpu_capability().startswith("AVX")]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_in_the_paper(metric: Tensor, r: int) -> Tensor:
    """Merged pairs (even, odd) of one item as a set of positions, by a full matrix in float64."""
    unit = torch.nn.functional.normalize(metric.double(), dim=1)
    best, odd = (unit[::2] @ unit[1::2].T).max(1)
    even = best.argsort(descending=True)[:r]
    return torch.stack([2 * even, 2 * odd[even] + 1], 1)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    metric = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [0.1, 5.0], [3.0, 0.1], [-1.0, 0.0], [-9.0, 1.0]]])
    assert bipartite_match(metric, 1, backend=backend).slot.tolist() == [[0, 1, 1, 2, 3, 4]]
    assert bipartite_match(metric, 2, backend=backend).slot.tolist() == [[1, 0, 0, 1, 2, 3]]
    found = bipartite_match(metric, 9, backend=backend)
    assert found.slot.tolist() == [[1, 0, 0, 1, 2, 2]] and found.count == 3
    assert bipartite_match(metric, 2, protect=1, backend=backend).slot.tolist() == [[0, 1, 1, 2, 3, 3]]
    assert bipartite_match(metric, 1, protect=2, backend=backend).slot.tolist() == [[0, 1, 2, 3, 4, 4]]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("tokens", "dim"), [(197, 64), (576, 24), (1033, 8)])
def test_it_merges_the_papers_pairs(tokens: int, dim: int, backend: str) -> None:
    metric = draw(0, 3, tokens, dim)
    found = bipartite_match(metric, tokens // 4, backend=backend)
    for item, slot in enumerate(found.slot):
        even, odd = as_in_the_paper(metric[item], tokens // 4).T
        assert torch.equal(slot[even], slot[odd])
        kept = torch.ones(tokens, dtype=torch.bool).index_fill(0, even, False)
        assert torch.equal(slot[kept], torch.arange(found.count))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 25), st.integers(0, 15), st.integers(0, 5), st.sampled_from(BACKENDS))
def test_a_ragged_batch_gives_the_slots_of_each_item_alone(
    seed: int, tokens: int, r: int, protect: int, backend: str
) -> None:
    generator = torch.Generator().manual_seed(seed)
    metric = torch.randn(3, tokens, 4, generator=generator).sign()
    lengths = torch.randint(0, tokens + 1, (3,), generator=generator)
    padded = metric.masked_fill((torch.arange(tokens) >= lengths[:, None])[..., None], torch.nan)
    found = bipartite_match(padded, r, protect, lengths=lengths, backend=backend)
    for item, length in enumerate(lengths.tolist()):
        alone = bipartite_match(metric[item : item + 1, :length], r, protect, backend=backend)
        assert torch.equal(found.slot[item, :length], alone.slot[0]) and alone.count <= found.count
        assert bool((found.slot[item, length:] == -1).all())
        assert sorted(set(alone.slot[0].tolist())) == list(range(alone.count))


def test_two_matches_in_a_row_are_one_assignment() -> None:
    x = draw(0, 2, 40, 6)
    first = bipartite_match(x, 10)
    once = merge(x, first)
    second = bipartite_match(once.values, 8)
    twice = merge(once.values, second, once.sizes)
    whole = second.slot.gather(1, first.slot)
    sizes = torch.nn.functional.one_hot(whole, second.count).sum(1)
    assert torch.equal(twice.sizes.long(), sizes)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_vector_width_takes_the_lowest_of_equal_tokens(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ctypes.CDLL(str(library.build("bipartite_match", architecture)))
    monkeypatch.setitem(library._loaded, "bipartite_match", found)
    metric = draw(0, 2, 301, 4).sign()
    expected = bipartite_match(metric, 90, backend="reference")
    assert torch.equal(bipartite_match(metric, 90, backend="cpu").slot, expected.slot)


def test_a_result_depends_on_no_other_item_and_not_on_the_number_of_threads() -> None:
    metric = draw(0, 5, 601, 33)
    metric[:, 5::3] = metric[:, 2:-3:3]  # copies: equal cosines up to the last bit
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(bipartite_match(metric, 200, backend="cpu").slot)
    finally:
        torch.set_num_threads(before)
    alone = torch.cat([bipartite_match(item[None], 200, backend="cpu").slot for item in metric])
    assert all(torch.equal(other, alone) for other in found)


def test_float64_is_matched_in_float64() -> None:
    metric = torch.tensor([[[1.0, 0.0], [1.0, 1 + 1e-9], [-1.0, 0.0], [1.0, 1.0]]], dtype=torch.float64)
    assert bipartite_match(metric, 1).slot.tolist() == [[2, 0, 1, 2]]
    assert bipartite_match(metric.float(), 1).slot.tolist() == [[0, 0, 1, 2]]


def test_one_graph_holds_it_and_no_gradient_passes() -> None:
    metric = draw(0, 2, 20, 4).requires_grad_()
    compiled = torch.compile(lambda m: bipartite_match(m, 5, 1).slot, fullgraph=True, backend="aot_eager")
    found = bipartite_match(metric, 5, 1).slot
    assert torch.equal(compiled(metric), found) and not found.requires_grad
    mapped = torch.func.vmap(lambda m: bipartite_match(m[None], 5, 1).slot[0])(metric.detach())
    assert torch.equal(mapped, found)


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected a float metric \[B, N, C\], got \[4, 2\]"):
        bipartite_match(torch.zeros(4, 2), 1)
    with pytest.raises(ValueError, match="r >= 0 and protect >= 0, got -1 and 0"):
        bipartite_match(torch.zeros(1, 4, 2), -1)
    with pytest.raises(ValueError, match=r"expected lengths int64 \[1\]"):
        bipartite_match(torch.zeros(1, 4, 2), 1, lengths=torch.tensor([1, 2]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    counted = torch.rand(2, 9, generator=torch.Generator().manual_seed(0)) < 0.7
    torch.library.opcheck(_op, (draw(0, 2, 9, 4), counted, backend))
    torch.library.opcheck(_op, (draw(0, 2, 9, 4).bfloat16(), counted, backend))
