import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vistok.data.collate import jagged, packed, padded
from vistok.rows import grid_coords
from vistok.tokens import TokenSpec, TokenTensor


def sample(count: int, *, books: int = 1, width: int = 0, seed: int = 0) -> TokenTensor:
    """One sample of a 1 x count grid: ids of `books` codebooks (0 = none) and embeds of `width` (0 = none)."""
    generator = torch.Generator().manual_seed(seed + count)
    ids = torch.randint(1, 900, (1, count, books), generator=generator) if books else None
    return TokenTensor(
        TokenSpec("made", width, (900,) * books, (1, count), 8, (8, 8 * count)),
        indices=ids[..., 0] if books == 1 else ids,
        embeds=torch.randn(1, count, width, generator=generator) if width else None,
        coords=grid_coords(1, count),
    )


COUNTS = st.lists(st.integers(0, 7), min_size=1, max_size=5)


@settings(max_examples=25, deadline=None)
@given(counts=COUNTS, books=st.integers(1, 3), pad_id=st.integers(-1, 900))
def test_padded_holds_every_sample_and_the_pad_id_behind_it(counts, books, pad_id):
    items = [sample(count, books=books) for count in counts]
    batch = padded(pad_id)(items)
    assert sorted(batch) == ["ids", "lengths", "mask"]
    assert batch["lengths"].tolist() == counts and batch["mask"].shape == (len(counts), max(counts))
    assert batch["ids"].dtype == torch.int64 and batch["mask"].dtype == torch.bool
    for row, item in enumerate(items):
        valid = batch["mask"][row]
        assert valid.sum() == counts[row] and valid[: counts[row]].all()
        assert torch.equal(batch["ids"][row][valid], item.indices[0])
        assert (batch["ids"][row][~valid] == pad_id).all()


@settings(max_examples=25, deadline=None)
@given(counts=COUNTS, books=st.integers(0, 2))
def test_packed_holds_the_samples_side_by_side(counts, books):
    items = [sample(count, books=books, width=0 if books else 3) for count in counts]
    batch = packed()(items)
    assert batch["cu_seqlens"].dtype == torch.int32 and batch["cu_seqlens"].diff().tolist() == counts
    assert batch["max_seqlen"] == max(counts) and type(batch["max_seqlen"]) is int
    for item, values in zip(items, batch["values"].split(counts), strict=True):
        assert torch.equal(values, item.indices[0] if books else item.embeds[0])


@settings(max_examples=25, deadline=None)
@given(counts=COUNTS, width=st.integers(0, 2))
def test_jagged_has_one_row_per_sample_and_pads_to_the_longest(counts, width):
    items = [sample(count, books=0 if width else 1, width=width) for count in counts]
    nested = jagged()(items)
    assert nested.layout == torch.jagged
    for item, row in zip(items, nested.unbind(), strict=True):
        assert torch.equal(row, item.embeds[0] if width else item.indices[0])
    if width:
        assert torch.nested.to_padded_tensor(nested, 0.0).shape == (len(counts), max(counts), width)


def test_samples_of_ids_and_embeds_give_both_padded():
    batch = padded(7)([sample(2, width=3), sample(4, width=3)])
    assert sorted(batch) == ["embeds", "ids", "lengths", "mask"]
    assert batch["embeds"].shape == (2, 4, 3) and (batch["embeds"][0, 2:] == 0).all()
    assert batch["ids"][0, 2:].tolist() == [7, 7]


def test_what_lies_behind_the_length_of_a_sample_stays_out():
    item = TokenTensor(TokenSpec("made"), indices=torch.tensor([[5, 6, 99]]), lengths=torch.tensor([2]))
    assert padded()([item])["ids"].tolist() == [[5, 6]]
    assert packed()([item])["values"].tolist() == [5, 6]
    assert jagged()([item]).unbind()[0].tolist() == [5, 6]


def test_more_tokens_than_a_packed_batch_may_have_are_an_error_that_says_what_fills_batches():
    assert packed(5)([sample(2), sample(3)])["values"].shape == (5,)
    with pytest.raises(ValueError, match=r"at most 5 tokens, got 6 in 2 samples.*TokenStore.iter"):
        packed(5)([sample(2), sample(4)])


@pytest.mark.parametrize("collate", [padded(), packed(), jagged()])
def test_what_is_no_list_of_samples_is_refused(collate):
    with pytest.raises(ValueError, match="at least one sample"):
        collate([])
    with pytest.raises(ValueError, match="a batch of 2"):
        collate([TokenTensor.cat([sample(2), sample(2)])])
    with pytest.raises(ValueError, match="indices in every sample or in none"):
        collate([sample(2), sample(2, books=0, width=1)])


@pytest.mark.parametrize("collate", [padded(3), packed(100)])
def test_collates_work_in_the_worker_processes_of_a_data_loader(collate):
    assert pickle.loads(pickle.dumps(jagged()))([sample(1)]).layout == torch.jagged
    items = [sample(count) for count in (2, 5, 3)]
    context = "spawn" if collate.keywords.get("pad_id") else "fork"
    loader = DataLoader(items, batch_size=2, num_workers=1, collate_fn=collate, multiprocessing_context=context)
    for found, expected in zip(loader, [collate(items[:2]), collate(items[2:])], strict=True):
        assert found.keys() == expected.keys()
        for name, value in found.items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(expected[name]))
