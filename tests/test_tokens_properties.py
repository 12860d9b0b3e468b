"""Properties of TokenTensor over random shapes, ragged lengths (0 included) and poisoned padding."""

from dataclasses import dataclass

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vistok.tokens import Assignment, Selection, TokenSpec, TokenTensor

few = settings(max_examples=25, deadline=None)


@dataclass(frozen=True)
class Case:
    """Tokens whose every field is drawn, the padding NaN or -1, and a generator for further draws."""

    tokens: TokenTensor
    generator: torch.Generator


@st.composite
def cases(draw: st.DrawFn, min_slots: int = 0) -> Case:
    batch, slots = draw(st.integers(0, 4)), draw(st.integers(min_slots, 7))
    lengths = torch.tensor(draw(st.lists(st.integers(0, slots), min_size=batch, max_size=batch)), dtype=torch.int64)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    padding = torch.arange(slots) >= lengths[:, None]
    floats = [torch.randn(shape, generator=generator) for shape in ((batch, slots, 3), (batch, slots))]
    whole = torch.randint(0, 50, (batch, slots, 2), generator=generator)
    tokens = TokenTensor(
        spec=TokenSpec("toy", dim=3, codebook_sizes=(50, 50)),
        embeds=floats[0].masked_fill(padding[..., None], torch.nan),
        indices=whole.masked_fill(padding[..., None], -1),
        lengths=lengths,
        coords=whole.to(torch.int32),
        scores=floats[1].masked_fill(padding, torch.nan),
        source=torch.randint(0, 99, (batch, slots), generator=generator).masked_fill(padding, -1),
        sizes=floats[1].abs().add(0.5).masked_fill(padding, torch.nan),
    )
    return Case(tokens, generator)


def assert_same(left: TokenTensor, right: TokenTensor) -> None:
    """Equal spec, lengths and valid tokens; padding may differ."""
    assert left.spec == right.spec
    assert left.valid_lengths.tolist() == right.valid_lengths.tolist()
    a, b = left.packed().values, right.packed().values
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=0, equal_nan=False)


@few
@given(cases())
def test_the_drawn_tokens_pass_their_own_check(case: Case) -> None:
    assert case.tokens.check() is case.tokens


@few
@given(cases(min_slots=1), st.integers(1, 5), st.integers(1, 5))
def test_two_selections_compose_their_source(case: Case, first: int, second: int) -> None:
    tokens = case.tokens.replace(source=None, lengths=None)
    batch = len(tokens)
    a = torch.randint(0, tokens.num_slots, (batch, first), generator=case.generator)
    b = torch.randint(0, first, (batch, second), generator=case.generator)
    twice = tokens.select(Selection(a)).select(Selection(b))
    once = tokens.select(Selection(a.gather(1, b)))
    assert twice.source is not None and once.source is not None
    assert torch.equal(twice.source, once.source)
    assert twice.indices is not None and once.indices is not None
    assert torch.equal(twice.indices, once.indices)


@few
@given(cases())
def test_keeping_every_valid_token_changes_nothing_but_fills_source(case: Case) -> None:
    assert_same(case.tokens.keep(case.tokens.mask), case.tokens)
    bare = case.tokens.replace(source=None).keep(torch.ones_like(case.tokens.mask))
    assert bare.source is not None
    for row, length in zip(bare.source, bare.valid_lengths, strict=True):
        assert row[:length].tolist() == list(range(int(length)))


@few
@given(cases())
def test_keep_equals_boolean_indexing_of_each_item(case: Case) -> None:
    tokens = case.tokens
    mask = torch.rand(tokens.mask.shape, generator=case.generator) < 0.5
    kept = tokens.keep(mask).check()
    assert tokens.indices is not None and kept.indices is not None
    for row in range(len(tokens)):
        expected = tokens.indices[row][mask[row] & tokens.mask[row]]
        assert torch.equal(kept.indices[row, : len(expected)], expected)
        assert int(kept.valid_lengths[row]) == len(expected)


@few
@given(cases(), st.integers(0, 8))
def test_truncating_by_number_and_per_item_agree(case: Case, budget: int) -> None:
    per_item = torch.full((len(case.tokens),), budget)
    assert_same(case.tokens.truncate(budget), case.tokens.truncate(per_item))
    assert_same(case.tokens.truncate(8), case.tokens)


@few
@given(cases())
def test_trim_keeps_every_valid_token_and_is_tight(case: Case) -> None:
    trimmed = case.tokens.trim().check()
    assert_same(trimmed, case.tokens)
    assert trimmed.num_slots == max(case.tokens.valid_lengths.tolist(), default=0)


@few
@given(cases())
def test_packing_and_unpacking_returns_the_valid_tokens(case: Case) -> None:
    packed = case.tokens.packed()
    assert not any(value.is_floating_point() and value.isnan().any() for value in packed.values.values())
    back = TokenTensor.from_packed(packed, case.tokens.spec).check()
    assert_same(back, case.tokens)
    again = back.packed()
    assert torch.equal(again.cu_seqlens, packed.cu_seqlens) and again.max_len == packed.max_len


@few
@given(cases())
def test_joining_the_items_gives_the_batch_back(case: Case) -> None:
    items = list(case.tokens)
    if items:
        assert_same(TokenTensor.cat(items).check(), case.tokens)


@few
@given(cases())
def test_cat_pads_items_of_different_widths_without_touching_them(case: Case) -> None:
    narrow = case.tokens.trim()
    joined = TokenTensor.cat([narrow, case.tokens, narrow]).check()
    batch = len(narrow)
    for start in (0, batch, 2 * batch):
        assert_same(joined[start : start + batch], case.tokens)


@few
@given(cases())
def test_rows_by_index_and_by_mask_agree(case: Case) -> None:
    mask = torch.rand(len(case.tokens), generator=case.generator) < 0.5
    assert_same(case.tokens[mask], case.tokens[mask.nonzero().flatten()])


@few
@given(cases(), st.integers(1, 4))
def test_merging_conserves_size_and_weighted_sum(case: Case, count: int) -> None:
    tokens = case.tokens
    merged = tokens.merge(Assignment(_dense_slots(tokens, count, case.generator), count)).check()
    assert _weighted(merged).allclose(_weighted(tokens), atol=1e-4)
    torch.testing.assert_close(_total(merged), _total(tokens))
    assert merged.indices is not None and not (merged.indices[merged.mask] < 0).any()


@few
@given(cases(), st.integers(1, 4))
def test_what_lies_in_padding_reaches_no_valid_token(case: Case, count: int) -> None:
    clean = case.tokens.zero_padding()
    slot = _dense_slots(clean, count, case.generator)
    keep = torch.rand(clean.mask.shape, generator=case.generator) < 0.5
    assert_same(case.tokens.merge(Assignment(slot, count)), clean.merge(Assignment(slot, count)))
    assert_same(case.tokens.keep(keep), clean.keep(keep))
    assert_same(case.tokens.to(torch.bfloat16), clean.to(torch.bfloat16))
    assert_same(case.tokens, clean)


def _dense_slots(tokens: TokenTensor, count: int, generator: torch.Generator) -> Tensor:
    """Slots [B, N] in use without gaps: each valid token goes to a random slot in use so far, or to the next one."""
    slot = torch.zeros(tokens.mask.shape, dtype=torch.int64)
    for row in range(len(tokens)):
        used = 0
        for position in range(int(tokens.valid_lengths[row])):
            choice = int(torch.randint(0, used + 1, (), generator=generator))
            slot[row, position] = min(choice, count - 1)
            used = max(used, int(slot[row, position]) + 1)
    return slot


def _total(tokens: TokenTensor) -> Tensor:
    assert tokens.sizes is not None
    return tokens.sizes.where(tokens.mask, 0).sum(1)


def _weighted(tokens: TokenTensor) -> Tensor:
    assert tokens.sizes is not None and tokens.embeds is not None
    return (tokens.embeds * tokens.sizes[..., None]).where(tokens.mask[..., None], 0).sum(1)
