"""Attention rows: the slice of ordinary attention that they are, uses in pruning, gradients, threads, mistakes."""

from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.ops import attention_rows
from vistok.ops.attention_rows import _op

BACKENDS = ["reference", "cpu"]


def draw(
    shape: tuple[int, int, int, int, int, int] = (2, 4, 2, 3, 11, 6), seed: int = 0, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """shape: items, heads, key heads, rows, keys, width."""
    items, heads, groups, rows, keys, width = shape
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(items, heads, rows, width, generator=generator).to(dtype)
    return q, torch.randn(items, groups, keys, width, generator=generator).to(dtype)


@pytest.mark.parametrize("backend", BACKENDS)
def test_by_hand(backend: str) -> None:
    """Two heads of one key head; weights 1 : 3 and 1 : 1 among the keys that the second mask leaves."""
    q = torch.tensor([[[[1.0]], [[0.0]]]])
    k = torch.tensor([0.0, 3.0, 7.0]).log1p()[None, None, :, None] * torch.tensor(3.0).log() / torch.tensor(4.0).log()
    mask = torch.tensor([[True, True, False]])
    found = attention_rows(q, k, k_mask=mask, return_rows=True, backend=backend)
    assert found.rows is not None
    torch.testing.assert_close(found.rows[0, :, 0], torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.5, 0.0]]))
    torch.testing.assert_close(found.mean, torch.tensor([[0.375, 0.625, 0.0]]))
    torch.testing.assert_close(found.lse.exp(), torch.tensor([[[4.0], [2.0]]]))


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from(BACKENDS))
def test_it_is_a_slice_of_ordinary_attention(data: st.DataObject, backend: str) -> None:
    """Weights out of torch's own attention, whose values are the unit vectors, for the last rows of a causal prompt."""
    groups, share, width = (data.draw(st.integers(1, top)) for top in (3, 4, 20))
    keys = data.draw(st.integers(1, 60))
    start = data.draw(st.integers(0, keys - 1))
    q, k = draw((2, groups * share, groups, keys, keys, width), data.draw(st.integers(0, 2**31)))
    values = torch.eye(keys).expand(2, groups, keys, keys)
    whole = torch.nn.functional.scaled_dot_product_attention(q, k, values, is_causal=True, enable_gqa=True)
    found = attention_rows(q[:, :, start:], k, causal_offset=start, return_rows=True, backend=backend)
    assert found.rows is not None
    torch.testing.assert_close(found.rows, whole[:, :, start:], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.mean, whole[:, :, start:].mean((1, 2)), rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_the_back_ends_agree_on_any_shape_and_mask(data: st.DataObject, dtype: torch.dtype) -> None:
    groups, share, rows, width = (data.draw(st.integers(1, top)) for top in (2, 5, 30, 40))
    keys, seed = data.draw(st.integers(1, 90)), data.draw(st.integers(0, 2**31))
    q, k = draw((2, groups * share, groups, rows, keys, width), seed, dtype)
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {
        "q_mask": torch.rand(2, rows, generator=generator) > 0.3,
        "k_mask": torch.rand(2, keys, generator=generator) > data.draw(st.sampled_from([0.2, 0.9])),
        "causal_offset": data.draw(st.none() | st.integers(-10, 100)),
        "image_slice": slice(data.draw(st.integers(0, keys)), data.draw(st.integers(0, keys))),
        "return_rows": True,
    }
    fast, slow = (attention_rows(q, k, **options, backend=backend) for backend in ("cpu", "reference"))
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_every_mean_sums_to_one_unless_nothing_is_visible(backend: str) -> None:
    q, k = draw((3, 4, 2, 20, 50, 8))
    k_mask = torch.arange(50) >= torch.tensor([[0], [20], [50]])
    found = attention_rows(q, k, k_mask=k_mask, causal_offset=15, backend=backend)
    torch.testing.assert_close(found.mean.sum(1), torch.tensor([1.0, 1.0, 0.0]))
    assert found.lse[1, 0].isinf().sum() == 5 and bool(found.lse[2].isneginf().all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_changes_nothing(backend: str) -> None:
    q, k = draw((1, 4, 2, 3, 40, 16))
    alone = attention_rows(q, k, causal_offset=37, backend=backend)
    padded_q = torch.nn.functional.pad(q, (0, 0, 2, 0), value=torch.nan)
    padded_k = torch.nn.functional.pad(k, (0, 0, 7, 0), value=torch.nan)
    options = {"q_mask": torch.arange(5)[None] >= 2, "k_mask": torch.arange(47)[None] >= 7, "causal_offset": 42}
    found = attention_rows(padded_q, padded_k, image_slice=slice(7, None), **options, backend=backend)
    torch.testing.assert_close(found.mean, alone.mean)
    torch.testing.assert_close(found.lse[:, :, 2:], alone.lse)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_known_normaliser_is_used(backend: str) -> None:
    """Rows over a part of the keys, normalised over all of them."""
    q, k = draw((1, 4, 2, 3, 40, 16))
    whole = attention_rows(q, k, backend=backend)
    part = attention_rows(q, k[:, :, 10:25], lse=whole.lse, backend=backend)
    torch.testing.assert_close(part.mean, whole.mean[:, 10:25])
    assert torch.equal(part.lse, whole.lse)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("known", [False, True])
def test_gradients_are_those_of_the_formula(backend: str, known: bool) -> None:
    q, k = (x.requires_grad_() for x in draw((2, 4, 2, 3, 11, 6)))
    visible = torch.arange(11) <= 7 + torch.arange(3)[:, None]
    scores = (q @ k.repeat_interleave(2, 1).transpose(2, 3) * 6**-0.5).masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(3)
    given = lse.detach().requires_grad_() if known else None
    weights = (scores - (lse if given is None else given)[..., None]).exp()
    expected = (weights.mean((1, 2))[:, 2:9], lse if given is None else given, weights[..., 2:9])
    found = attention_rows(q, k, causal_offset=7, image_slice=slice(2, 9), lse=given, return_rows=True, backend=backend)
    generator = torch.Generator().manual_seed(5)
    parts = [torch.randn(x.shape, generator=generator) for x in expected]
    leaves = (q, k) if given is None else (q, k, given)
    gradients = (
        torch.autograd.grad(sum((x * part).sum() for x, part in zip(outputs, parts, strict=True)), leaves)
        for outputs in (found, expected)
    )
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_gradients_in_float64_and_of_rows_that_see_nothing() -> None:
    q, k = (x.double().requires_grad_() for x in draw((2, 2, 1, 3, 5, 2)))
    options: dict[str, Any] = {"causal_offset": -1, "k_mask": torch.arange(5) < torch.tensor([[4], [0]])}

    def probe(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        found = attention_rows(q, k, image_slice=slice(1, 4), return_rows=True, **options)
        assert found.rows is not None
        return found.mean, found.rows

    assert torch.autograd.gradcheck(probe, (q, k))


def test_text_behind_an_image_asks_in_one_call_what_full_attention_answers() -> None:
    """TransPrune's guidance: full causal softmax, mean over heads and instruction rows, image columns."""
    q, k = draw((1, 8, 2, 30, 30, 16))
    full = torch.softmax(
        (q @ k.repeat_interleave(4, 1).transpose(2, 3) / 4).masked_fill(~torch.ones(30, 30).tril().bool(), -torch.inf),
        3,
    )
    found = attention_rows(q[:, :, 22:], k, causal_offset=22, image_slice=slice(4, 20))
    torch.testing.assert_close(found.mean, full.mean(1)[:, 22:, 4:20].mean(1))
    assert found.rows is None


@pytest.mark.parametrize("rows", [1, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_nothing(rows: int, dtype: torch.dtype) -> None:
    q, k = draw((2, 8, 2, rows, 301, 64), dtype=dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(attention_rows(q, k, return_rows=True, backend="cpu"))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    torch.testing.assert_close(found[0].mean, attention_rows(q.double(), k.double()).mean.float())


def test_the_reference_does_not_depend_on_its_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k = (x.double().requires_grad_() for x in draw((2, 4, 2, 7, 11, 6)))
    results = []
    for cells in (1 << 22, 90):
        monkeypatch.setattr(import_module("vistok.ops.attention_rows"), "_CELLS", cells)
        found = attention_rows(q, k, causal_offset=3, return_rows=True)
        assert found.rows is not None
        weights = torch.arange(11.0).double()
        results.append((*found, *torch.autograd.grad((found.mean * weights).sum() + found.rows.square().sum(), (q, k))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_float64_stays_float64() -> None:
    q, k = draw()
    assert attention_rows(q, k.double()).mean.dtype == torch.float64


def test_vmap_maps_over_it() -> None:
    q, k = draw()
    both = torch.func.vmap(lambda q: attention_rows(q, k).mean)(torch.stack([q, -q]))
    assert torch.equal(both[1], attention_rows(-q, k).mean)


def test_mistakes_are_named() -> None:
    q, k = draw()
    with pytest.raises(ValueError, match=r"H a multiple of G, got \[2, 3, 3, 6\] and \[2, 2, 11, 6\]"):
        attention_rows(q[:, :3], k)
    with pytest.raises(ValueError, match="expected q .* and k"):
        attention_rows(q[0], k)
    with pytest.raises(ValueError, match="floating-point q and k, got torch.int64"):
        attention_rows(q.long(), k)
    with pytest.raises(ValueError, match=r"q_mask bool \[2, 3\], got torch.bool \[3\]"):
        attention_rows(q, k, q_mask=torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"k_mask bool \[2, 11\], got torch.int64"):
        attention_rows(q, k, k_mask=torch.ones(2, 11, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"lse float \[2, 4, 3\], got torch.float32 \[2, 4\]"):
        attention_rows(q, k, lse=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"causal_offset an int or integers \[2\], got torch.int64 \[3\]"):
        attention_rows(q, k, causal_offset=torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match="step 1, got slice"):
        attention_rows(q, k, image_slice=slice(0, 9, 2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck's own tensors
@pytest.mark.parametrize("backend", BACKENDS)
def test_it_is_a_lawful_op(backend: str) -> None:
    q, k = draw((2, 2, 1, 3, 5, 4))
    last, allowed = torch.tensor([[1, 2, 4], [-1, 3, 0]]), torch.ones(2, 5, dtype=torch.bool)
    torch.library.opcheck(_op, (q, k, last, allowed, None, 0.5, 0, 5, False, backend))
    q, k = q.requires_grad_(), k.requires_grad_()
    torch.library.opcheck(_op, (q, k, last, allowed, None, 0.5, 1, 4, True, backend))
    lse = torch.ones(2, 2, 3, requires_grad=True)
    torch.library.opcheck(_op, (q, k, last, allowed, lse, 0.5, 1, 4, True, backend))


def test_a_compiled_function_holds_it_whole() -> None:
    q, k = draw()
    compiled = torch.compile(
        lambda q, k: attention_rows(q, k, causal_offset=8, image_slice=slice(1, 9)).mean,
        backend="aot_eager",
        fullgraph=True,
    )
    assert torch.equal(compiled(q, k), attention_rows(q, k, causal_offset=8, image_slice=slice(1, 9)).mean)
