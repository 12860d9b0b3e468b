"""TokenTensor on examples small enough to write the answers out."""

import pytest
import torch
from torch import Tensor

from vistok.rows import grid_coords, take_rows
from vistok.tokens import Assignment, Packed, Selection, TokenSpec, TokenTensor

SPEC = TokenSpec("toy", dim=1, codebook_sizes=(100,), grid=(1, 4), patch=8, image_size=(8, 32))
NAN = float("nan")


def toy(**changes: object) -> TokenTensor:
    """Two items of four slots, three tokens and one token valid; padding is NaN or an impossible id."""
    fields: dict[str, object] = {
        "embeds": torch.tensor([[10.0, 11, 12, NAN], [20, NAN, NAN, NAN]])[..., None],
        "indices": torch.tensor([[0, 1, 2, -9], [3, -9, -9, -9]]),
        "lengths": torch.tensor([3, 1]),
    }
    return TokenTensor(spec=SPEC, **{**fields, **changes})  # type: ignore[arg-type]


def values(tokens: TokenTensor) -> list[list[float]]:
    """The valid embeds of every item."""
    assert tokens.embeds is not None
    return [row[mask, 0].tolist() for row, mask in zip(tokens.embeds, tokens.mask, strict=True)]


def test_shape_properties_of_a_ragged_batch() -> None:
    tokens = toy()
    assert len(tokens) == 2
    assert tokens.num_slots == 4
    assert tokens.device == torch.device("cpu")
    assert tokens.mask.tolist() == [[True, True, True, False], [True, False, False, False]]
    assert tokens.valid_lengths.tolist() == [3, 1]
    assert list(tokens.tensors()) == ["embeds", "indices", "lengths"]
    assert list(tokens.token_tensors()) == ["embeds", "indices"]


def test_without_lengths_every_slot_is_valid() -> None:
    tokens = TokenTensor(spec=SPEC, indices=torch.zeros(2, 3, dtype=torch.int64))
    assert tokens.valid_lengths.tolist() == [3, 3]
    assert tokens.mask.all()


def test_tokens_without_embeds_and_indices_say_what_is_missing() -> None:
    with pytest.raises(ValueError, match="expected embeds or indices, got neither"):
        len(TokenTensor(spec=SPEC))


def test_select_gathers_every_field_and_records_the_source() -> None:
    coords = torch.arange(16, dtype=torch.int32).reshape(2, 4, 2)
    tokens = toy(coords=coords, sizes=torch.arange(8.0).reshape(2, 4))
    kept = tokens.select(Selection(torch.tensor([[0, 2], [0, 1]]), torch.tensor([2, 1])))
    assert values(kept) == [[10, 12], [20]]
    assert kept.indices is not None and kept.indices[0].tolist() == [0, 2]
    assert kept.coords is not None and kept.coords[0].tolist() == [[0, 1], [4, 5]]
    assert kept.sizes is not None and kept.sizes[0].tolist() == [0, 2]
    assert kept.source is not None and kept.source.tolist() == [[0, 2], [0, 1]]
    assert kept.lengths is not None and kept.lengths.tolist() == [2, 1]
    assert kept.spec == SPEC


def test_select_twice_points_at_the_sequence_of_encode() -> None:
    once = toy().select(Selection(torch.tensor([[2, 0, 1], [0, 1, 2]])))
    twice = once.select(Selection(torch.tensor([[1, 2], [0, 1]])))
    assert twice.source is not None and twice.source[0].tolist() == [0, 1]


def test_select_without_lengths_keeps_at_most_what_an_item_has() -> None:
    kept = toy().select(Selection(torch.tensor([[0, 1], [0, 1]])))
    assert kept.lengths is not None and kept.lengths.tolist() == [2, 1]
    full = toy(lengths=None).select(Selection(torch.tensor([[0, 1], [0, 1]])))
    assert full.lengths is None


def test_select_takes_the_scores_of_the_selection() -> None:
    scores = torch.tensor([[0.5, 0.25, 1, 0], [1, 0, 0, 0]], dtype=torch.float64)
    kept = toy().select(Selection(torch.tensor([[2, 0], [0, 1]]), None, scores))
    assert kept.scores is not None and kept.scores.dtype == torch.float32
    assert kept.scores.tolist() == [[1, 0.5], [1, 0]]


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        (Selection(torch.tensor([0, 1])), r"index: expected \[B, K\] int64 with B=2, got \[2\]"),
        (Selection(torch.zeros(3, 1, dtype=torch.int64)), r"index: expected .* B=2, got \[3, 1\]"),
        (Selection(torch.zeros(2, 1)), r"index: .*float32"),
        (Selection(torch.tensor([[0], [4]])), r"index: expected slots in 0..N-1 with N=4, got 0..4"),
        (Selection(torch.tensor([[0], [-1]])), r"index: expected slots in 0..N-1 with N=4, got -1..0"),
        (Selection(torch.tensor([[0], [1]]), torch.tensor([1])), r"lengths: expected \[B\] int64 with B=2, got \[1\]"),
        (Selection(torch.tensor([[0], [1]]), torch.ones(2)), r"lengths: .*float32"),
        (Selection(torch.tensor([[0], [1]]), None, torch.ones(2, 1)), r"scores: expected \[B, N\] \[2, 4\], got"),
    ],
)
def test_select_refuses_a_selection_that_does_not_fit(selection: Selection, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy().select(selection)


def test_keep_moves_the_kept_tokens_to_the_front_in_order() -> None:
    kept = toy().keep(torch.tensor([[True, False, True, True], [False, True, True, True]]))
    assert kept.num_slots == 4
    assert values(kept) == [[10, 12], []]
    assert kept.lengths is not None and kept.lengths.tolist() == [2, 0]
    assert kept.source is not None and kept.source[0, :2].tolist() == [0, 2]


@pytest.mark.parametrize(
    "mask", [torch.ones(2, 4), torch.ones(2, 3, dtype=torch.bool), torch.ones(4, dtype=torch.bool)]
)
def test_keep_refuses_a_mask_of_another_shape_or_dtype(mask: Tensor) -> None:
    with pytest.raises(ValueError, match=r"keep: expected a bool mask \[2, 4\], got"):
        toy().keep(mask)


def test_truncate_by_a_number_cuts_the_slots() -> None:
    cut = toy().truncate(2)
    assert cut.num_slots == 2
    assert values(cut) == [[10, 11], [20]]
    assert toy(lengths=None).truncate(2).lengths is None
    assert toy().truncate(9).num_slots == 4
    assert toy().truncate(0).num_slots == 0


def test_truncate_per_item_keeps_the_slots() -> None:
    cut = toy().truncate(torch.tensor([2, 4], dtype=torch.int32))
    assert cut.num_slots == 4
    assert values(cut) == [[10, 11], [20]]
    assert cut.lengths is not None and cut.lengths.dtype == torch.int64


def test_truncate_refuses_budgets_that_are_none() -> None:
    with pytest.raises(ValueError, match="expected a budget >= 0, got -1"):
        toy().truncate(-1)
    with pytest.raises(ValueError, match=r"expected lengths \[B\] int64 with B=2, got \[3\]"):
        toy().truncate(torch.tensor([1, 1, 1]))
    with pytest.raises(ValueError, match="float32"):
        toy().truncate(torch.tensor([0.5, 0.5]))
    with pytest.raises(ValueError, match=r"expected lengths >= 0, got \[1, -1\]"):
        toy().truncate(torch.tensor([1, -1]))


def test_trim_cuts_the_slots_that_no_item_uses() -> None:
    assert toy().trim().num_slots == 3
    equal = toy(lengths=torch.tensor([2, 2])).trim()
    assert equal.num_slots == 2 and equal.lengths is None
    whole = toy(lengths=None)
    assert whole.trim() is whole


def test_merge_averages_by_size_and_follows_the_largest_token() -> None:
    tokens = toy(
        embeds=torch.tensor([[10.0, 20, 40, NAN], [7, NAN, NAN, NAN]])[..., None],
        sizes=torch.tensor([[1.0, 3, 2, NAN], [5, NAN, NAN, NAN]]),
        scores=torch.tensor([[0.0, 1, 5, NAN], [2, NAN, NAN, NAN]]),
        coords=torch.arange(8, dtype=torch.int32).reshape(2, 4, 1),
    )
    merged = tokens.merge(Assignment(torch.tensor([[0, 0, 1, 0], [0, 1, 1, 1]]), 2))
    assert values(merged) == [[17.5, 40], [7]]  # (10 * 1 + 20 * 3) / 4
    assert merged.sizes is not None and merged.sizes.tolist() == [[4, 2], [5, 0]]
    assert merged.scores is not None and merged.scores[0].tolist() == [0.75, 5]
    assert merged.indices is not None and merged.indices[0].tolist() == [1, 2]
    assert merged.coords is not None and merged.coords[0].tolist() == [[1], [2]]
    assert merged.source is not None and merged.source[0].tolist() == [1, 2]
    assert merged.lengths is not None and merged.lengths.tolist() == [2, 1]


def test_merge_gives_ties_of_size_to_the_lowest_position_and_drops_minus_one() -> None:
    merged = toy(lengths=None, embeds=None).merge(Assignment(torch.tensor([[1, 0, 0, -1], [-1, 0, -1, -1]]), 2))
    assert merged.sizes is not None and merged.sizes.tolist() == [[2, 1], [1, 0]]
    assert merged.source is not None and merged.source[0].tolist() == [1, 0]
    assert merged.lengths is not None and merged.lengths.tolist() == [2, 1]


def test_merge_of_bfloat16_counts_past_256() -> None:
    tokens = TokenTensor(TokenSpec("toy"), embeds=torch.ones(1, 1024, 1, dtype=torch.bfloat16))
    merged = tokens.merge(Assignment(torch.zeros(1, 1024, dtype=torch.int64), 1))
    assert merged.embeds is not None and merged.embeds.dtype == torch.bfloat16
    assert merged.embeds.item() == 1.0
    assert merged.sizes is not None and merged.sizes.item() == 1024


def test_merge_passes_the_gradient_to_every_merged_token() -> None:
    embeds = torch.tensor([[[1.0], [2.0], [3.0]]], requires_grad=True)
    merged = TokenTensor(TokenSpec("toy"), embeds=embeds).merge(Assignment(torch.tensor([[0, 0, -1]]), 1))
    assert merged.embeds is not None
    merged.embeds.sum().backward()
    assert embeds.grad is not None and embeds.grad.flatten().tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize(
    ("slot", "message"),
    [
        (torch.zeros(2, 3, dtype=torch.int64), r"expected int64 \[2, 4\], got \[2, 3\]"),
        (torch.zeros(2, 4), "float32"),
        (torch.tensor([[0, 1, 3, 0], [0, 0, 0, 0]]), r"expected slots in -1..1 \(count=2\), got 3"),
        (torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0]]), "unused ones between"),
    ],
)
def test_merge_refuses_assignments_that_do_not_fit(slot: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy().merge(Assignment(slot, 2))


def test_merge_of_no_tokens_leaves_empty_slots() -> None:
    merged = toy().truncate(0).merge(Assignment(torch.empty(2, 0, dtype=torch.int64), 3)).check()
    assert merged.num_slots == 3
    assert merged.valid_lengths.tolist() == [0, 0]


def test_packed_has_the_valid_tokens_one_after_the_other() -> None:
    packed = toy().packed()
    assert packed.values["embeds"].flatten().tolist() == [10, 11, 12, 20]
    assert packed.values["indices"].tolist() == [0, 1, 2, 3]
    assert packed.cu_seqlens.tolist() == [0, 3, 4] and packed.cu_seqlens.dtype == torch.int32
    assert packed.max_len == 3


def test_from_packed_pads_with_zeros() -> None:
    tokens = TokenTensor.from_packed(toy().packed(), SPEC)
    assert tokens.embeds is not None and tokens.embeds[..., 0].tolist() == [[10, 11, 12], [20, 0, 0]]
    assert tokens.valid_lengths.tolist() == [3, 1]


def test_from_packed_refuses_values_that_cu_seqlens_does_not_describe() -> None:
    packed = Packed({"indices": torch.arange(5)}, torch.tensor([0, 3, 4], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"values\['indices'\]: expected T=4 .* got \[5\]"):
        TokenTensor.from_packed(packed, SPEC)


def test_to_nested_has_one_row_per_item() -> None:
    nested = toy().to_nested()
    assert nested.layout == torch.jagged
    assert [row.flatten().tolist() for row in nested.unbind()] == [[10, 11, 12], [20]]
    assert [row.tolist() for row in toy().to_nested("indices").unbind()] == [[0, 1, 2], [3]]
    with pytest.raises(ValueError, match=r"expected one of \['embeds', 'indices'\], got 'scores'"):
        toy().to_nested("scores")


def test_zero_padding_clears_what_lies_behind() -> None:
    cleared = toy().zero_padding()
    assert cleared.embeds is not None and cleared.embeds[..., 0].tolist() == [[10, 11, 12, 0], [20, 0, 0, 0]]
    assert cleared.indices is not None and cleared.indices.tolist() == [[0, 1, 2, 0], [3, 0, 0, 0]]


def test_take_rows_gathers_within_each_item() -> None:
    rows = take_rows(torch.arange(12).reshape(2, 3, 2), torch.tensor([[2, 0], [1, 1]]))
    assert rows.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_grid_coords_run_row_by_row() -> None:
    coords = grid_coords(2, 3, batch=2)
    assert coords.dtype == torch.int32
    assert coords[1].tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
