"""Compact and scatter back: round trips, the token-tensor's own packing, gradients, large results, mistakes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import compact, scatter_back
from vistok.ops.compact import _op, _scatter_op, rows_at
from vistok.tokens import Selection, TokenSpec, TokenTensor

BACKENDS = ["reference", "cpu"]
X = torch.arange(24.0).reshape(2, 4, 3)
KEEP = torch.tensor([[True, False, True, False], [False, False, False, True]])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_mask(seed: int, batch: int, slots: int) -> Tensor:
    return torch.rand(batch, slots, generator=torch.Generator().manual_seed(seed)) < 0.4


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    found = compact(X, KEEP, backend=backend)
    assert found.packed.tolist() == [[0.0, 1.0, 2.0], [6.0, 7.0, 8.0], [21.0, 22.0, 23.0]]
    assert found.cu_seqlens.tolist() == [0, 2, 3] and found.source.tolist() == [0, 2, 7] and found.max_len == 2
    back = scatter_back(found.packed, found.source, (2, 4), -1.0, backend=backend)
    assert torch.equal(back, X.where(KEEP[..., None], -1.0))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.integers(0, 4), st.integers(0, 9), st.integers(0, 4), st.sampled_from(BACKENDS))
def test_scatter_back_undoes_compact(seed: int, batch: int, slots: int, dim: int, backend: str) -> None:
    x, keep = draw(seed, batch, slots, dim), random_mask(seed, batch, slots)
    found = compact(x, keep, backend=backend)
    assert torch.equal(found.packed, x[keep])
    back = scatter_back(found.packed, found.source, (batch, slots), 7.0, backend=backend)
    assert torch.equal(back, x.where(keep[..., None], 7.0))
    total = int(keep.sum()) + seed % 3
    padded = compact(x, keep, max_total=total, backend=backend)
    assert torch.equal(padded.packed[: len(found.packed)], found.packed) and len(padded.packed) == total
    assert torch.equal(scatter_back(padded.packed, padded.source, (batch, slots), 7.0, backend=backend), back)


def test_it_packs_and_selects_as_a_token_tensor_does() -> None:
    lengths = torch.tensor([4, 0, 6])
    tokens = TokenTensor(
        TokenSpec("a", dim=5), embeds=draw(0, 3, 6, 5), lengths=lengths, coords=torch.ones(3, 6, 2).int()
    )
    names, values = zip(*tokens.token_tensors().items(), strict=True)
    packed = tokens.packed()
    found = compact(list(values), tokens.mask)
    assert list(packed.values) == list(names) and packed.max_len == found.max_len
    assert torch.equal(packed.cu_seqlens, found.cu_seqlens) and packed.cu_seqlens.dtype == found.cu_seqlens.dtype
    assert all(torch.equal(packed.values[name], rows) for name, rows in zip(names, found.packed, strict=True))
    keep = random_mask(1, 3, 6)
    assert torch.equal(tokens.keep(keep).packed().values["embeds"], compact(values[0], keep, lengths=lengths).packed)
    chosen = Selection(torch.tensor([[3, 1], [0, 0], [5, 0]]), torch.tensor([2, 0, 1]))
    selected = tokens.select(chosen).packed()
    assert torch.equal(selected.values["embeds"], compact(values[0], *chosen[:1], lengths=chosen.lengths).packed)


def test_a_cache_is_pruned_where_it_lies() -> None:
    keys = draw(0, 2, 3, 10, 8)
    slots = torch.tensor([[1, 4, 9], [0, 2, 3]])
    found = compact(keys.transpose(1, 2), slots)
    expected = torch.stack([keys[item][:, row] for item, row in enumerate(slots)])
    assert torch.equal(found.packed.reshape(2, 3, 3, 8).transpose(1, 2), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_large_results_are_copied_whole(dtype: torch.dtype, backend: str) -> None:
    x, keep = (draw(0, 8, 576, 2048) * 100).to(dtype), random_mask(1, 8, 576)
    found = compact(x, keep, backend=backend)
    assert torch.equal(found.packed, x[keep])
    back = scatter_back(found.packed, found.source, (8, 576), 3.0, backend=backend)
    assert torch.equal(back, x.masked_fill(~keep[..., None], 3))
    wide = x.reshape(8, 576, 16, 128).transpose(1, 2)
    assert torch.equal(compact(wide, keep[:, :16], backend=backend).packed, wide[keep[:, :16]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_number_of_threads_changes_nothing(backend: str) -> None:
    x, keep = draw(0, 4, 301, 96), random_mask(1, 4, 301)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(compact(x, keep, backend=backend))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(other.packed, x[keep]) for other in found)


@pytest.mark.parametrize("keep", [KEEP, torch.tensor([[3, 0], [1, 2]]), torch.tensor([[3, 3], [1, 3]])])
def test_gradients_are_those_of_indexing_even_where_a_slot_is_taken_twice(keep: Tensor) -> None:
    x = X.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: compact(x, keep, max_total=5).packed, x)
    assert torch.autograd.gradgradcheck(lambda x: compact(x, keep, max_total=5).packed ** 2, x)
    source = torch.tensor([4, -1, 0])
    packed = torch.ones(3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda packed: scatter_back(packed, source, (1, 6), 2.0), packed)
    assert torch.autograd.gradgradcheck(lambda packed: scatter_back(packed, source, (1, 6)) ** 2, packed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_back_end_passes_gradients(dtype: torch.dtype, backend: str) -> None:
    x = X.to(dtype).clone().requires_grad_()
    weight = torch.arange(9.0).reshape(3, 3).to(dtype)
    (gradient,) = torch.autograd.grad((compact(x, KEEP, backend=backend).packed * weight).sum(), x)
    expected = torch.zeros_like(X, dtype=dtype)
    expected[KEEP] = weight
    assert torch.equal(gradient, expected)


def test_known_sizes_need_one_graph_and_vmap_maps_over_it() -> None:
    slots = torch.tensor([[3, 0], [1, 2]])
    compiled = torch.compile(lambda x, slots: compact(x, slots)[:3], fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(X, slots), compact(X, slots)[:3], strict=True))
    compiled = torch.compile(lambda x, keep: compact(x, keep, max_total=6)[:3], fullgraph=True, backend="aot_eager")
    assert all(torch.equal(a, b) for a, b in zip(compiled(X, KEEP), compact(X, KEEP, max_total=6)[:3], strict=True))
    mapped = torch.func.vmap(lambda x: rows_at(x, torch.tensor([5, 0])))(torch.stack([X, 2 * X]))
    assert torch.equal(mapped[1], 2 * X.flatten(0, 1)[[5, 0]])


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"expected a keep mask \[2, 4\], got \[2, 3\]"):
        compact(X, KEEP[:, :3])
    with pytest.raises(ValueError, match="keep bool .* or slots int64 .*int32"):
        compact(X, torch.zeros(2, 2, dtype=torch.int32))
    with pytest.raises(ValueError, match="alike in B and N"):
        compact([X, X[:, :2]], KEEP)
    with pytest.raises(ValueError, match=r"expected lengths int64 \[2\]"):
        compact(X, KEEP, lengths=torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="at most max_total=2 kept slots, got 3"):
        compact(X, KEEP, max_total=2)
    for slot in (-1, 4):
        with pytest.raises(ValueError, match=r"expected slots in 0..3, got"):
            compact(X, torch.tensor([[0, 1], [2, slot]]))
    with pytest.raises(ValueError, match="expected packed .* and source"):
        scatter_back(X[0], torch.tensor([1]), (2, 4))
    with pytest.raises(ValueError, match="every place at most once"):
        scatter_back(X[0], torch.tensor([1, 1, 2, -1]), (2, 4))
    for backend in BACKENDS:
        for place in (8, -2):
            with pytest.raises(ValueError, match=r"expected ids in 0..7"):
                rows_at(X, torch.tensor([0, place]), backend=backend)
            with pytest.raises(ValueError, match=r"expected ids in 0..7"):
                scatter_back(X[0], torch.tensor([0, 1, 2, place]), (2, 4), backend=backend)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_they_are_lawful_ops(backend: str) -> None:
    x, source = X.clone().requires_grad_(), torch.tensor([7, -1, 2])
    for distinct in (True, False):
        torch.library.opcheck(_op, (x, source, 2.0, distinct, backend))
    torch.library.opcheck(_op, (X.transpose(1, 2), source[1:], 0.0, True, backend))
    torch.library.opcheck(_op, (X.long()[:, :, 0], source, 0.0, True, backend))
    torch.library.opcheck(_scatter_op, (X[0, :3].clone().requires_grad_(), source, 9, -1.0, backend))
