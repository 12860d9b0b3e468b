"""TokenTensor as a batch: joining, indexing, moving, validation, printing."""

from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from vistok.tokens import TokenSpec, TokenTensor

SPEC = TokenSpec("toy", dim=2, codebook_sizes=(8,), grid=(1, 3))


def item(slots: int, fill: float = 1.0, **changes: object) -> TokenTensor:
    fields: dict[str, object] = {"embeds": torch.full((1, slots, 2), fill), "indices": torch.ones(1, slots).long()}
    return TokenTensor(spec=SPEC, **{**fields, **changes})  # type: ignore[arg-type]


def test_cat_pads_to_the_longest_item() -> None:
    joined = TokenTensor.cat([item(3), item(1, fill=2.0), item(2)]).check()
    assert joined.embeds is not None and joined.embeds.shape == (3, 3, 2)
    assert joined.valid_lengths.tolist() == [3, 1, 2]
    assert joined.embeds[1, :, 0].tolist() == [2, 0, 0]


def test_cat_of_equal_full_items_stays_without_lengths() -> None:
    assert TokenTensor.cat([item(3), item(3)]).lengths is None
    assert TokenTensor.from_list([item(3), item(3, lengths=torch.tensor([2]))]).valid_lengths.tolist() == [3, 2]


def test_cat_fills_source_and_sizes_where_others_have_them() -> None:
    pruned = item(2, source=torch.tensor([[4, 9]]), sizes=torch.tensor([[2.0, 3.0]]))
    joined = TokenTensor.cat([item(2), pruned])
    assert joined.source is not None and joined.source.tolist() == [[0, 1], [4, 9]]
    assert joined.sizes is not None and joined.sizes.tolist() == [[1, 1], [2, 3]]


def test_cat_refuses_what_does_not_belong_together() -> None:
    with pytest.raises(ValueError, match="at least one TokenTensor, got an empty list"):
        TokenTensor.cat([])
    with pytest.raises(ValueError, match=r"one spec per batch.*bucket by image size"):
        TokenTensor.cat([item(3), item(3).replace(spec=TokenSpec("other"))])
    with pytest.raises(ValueError, match="expected the field 'scores' in all items or in none"):
        TokenTensor.cat([item(3), item(3, scores=torch.ones(1, 3))])


def test_rows_are_taken_by_slice_index_and_mask() -> None:
    batch = TokenTensor.cat([item(3, 0.0), item(1, 1.0), item(2, 2.0)])
    assert batch[1:].valid_lengths.tolist() == [1, 2]
    assert batch[torch.tensor([2, 0, 0])].valid_lengths.tolist() == [2, 3, 3]
    assert batch[torch.tensor([True, False, True])].valid_lengths.tolist() == [3, 2]
    assert len(batch[3:]) == 0


@pytest.mark.parametrize("rows", [0, [0, 1], torch.tensor(1), torch.ones(1, 3, dtype=torch.bool)])
def test_rows_that_would_lose_the_batch_axis_are_refused(rows: object) -> None:
    with pytest.raises(TypeError, match=r"expected a slice, \[M\] int64 or \[B\] bool, got"):
        item(3)[rows]  # type: ignore[index]


def test_iteration_gives_trimmed_items() -> None:
    items = list(TokenTensor.cat([item(3), item(1), item(0)]))
    assert [one.num_slots for one in items] == [3, 1, 0]
    assert all(len(one) == 1 and one.lengths is None for one in items)


def test_map_replace_and_detach_touch_what_they_name() -> None:
    tokens = item(2, embeds=torch.ones(1, 2, 2, requires_grad=True))
    doubled: TokenTensor = tokens.map(lambda value: value * 2)
    assert doubled.embeds is not None and doubled.embeds.requires_grad and doubled.embeds.sum() == 8
    assert doubled.indices is not None and doubled.indices.tolist() == [[2, 2]]
    cut = tokens.detach()
    assert cut.embeds is not None and not cut.embeds.requires_grad
    assert tokens.replace(indices=None).indices is None


def test_token_tensors_are_frozen_and_compare_by_identity() -> None:
    tokens = item(2)
    with pytest.raises(FrozenInstanceError):
        tokens.embeds = None  # type: ignore[misc]
    assert tokens != item(2)
    assert tokens in {tokens}


_TO = [
    ((torch.bfloat16,), {}),
    ((torch.bfloat16, False), {}),
    ((torch.bfloat16, False, True), {}),
    (("cpu", torch.bfloat16), {}),
    (("cpu", torch.bfloat16, True, True), {}),
    ((torch.device("cpu"), torch.bfloat16), {"copy": True}),
    ((None, torch.bfloat16), {}),
    ((torch.zeros(1, dtype=torch.bfloat16),), {}),
    ((torch.zeros(1, dtype=torch.bfloat16), False, True), {}),
    ((), {"dtype": torch.bfloat16}),
    ((), {"device": "cpu", "dtype": torch.bfloat16, "non_blocking": True}),
    ((torch.bfloat16,), {"memory_format": torch.preserve_format}),
]


@pytest.mark.parametrize(("args", "kwargs"), _TO)
def test_to_takes_every_form_of_tensor_to_and_casts_embeds_only(args: tuple, kwargs: dict) -> None:  # type: ignore[type-arg]
    tokens = item(
        3,
        lengths=torch.tensor([2]),
        coords=torch.zeros(1, 3, 2, dtype=torch.int32),
        scores=torch.full((1, 3), 0.1),
        source=torch.arange(3)[None],
        sizes=torch.full((1, 3), 257.0),
    )
    moved = tokens.to(*args, **kwargs).check()
    assert moved.embeds is not None and moved.embeds.dtype == torch.bfloat16
    for name, value in tokens.tensors().items():
        if name != "embeds":
            assert getattr(moved, name).dtype == value.dtype
            assert torch.equal(getattr(moved, name), value)


def test_to_moves_every_field_to_the_device() -> None:
    moved = item(3, lengths=torch.tensor([2])).to("meta", non_blocking=True)
    assert {value.device.type for value in moved.tensors().values()} == {"meta"}
    assert {value.device.type for value in item(3).to(torch.ones((), device="meta")).tensors().values()} == {"meta"}


def test_to_copies_when_asked_to() -> None:
    tokens = item(3)
    assert tokens.to("cpu").embeds is tokens.embeds
    for copied in (tokens.to("cpu", copy=True), tokens.to(torch.float32, False, True)):
        assert all(getattr(copied, name).data_ptr() != value.data_ptr() for name, value in tokens.tensors().items())


def test_to_refuses_integer_embeds() -> None:
    with pytest.raises(TypeError, match=r"expected a floating dtype for embeds, got torch\.int64"):
        item(3).to(torch.int64)


def test_check_returns_valid_tokens_themselves() -> None:
    tokens = item(3, lengths=torch.tensor([0]), indices=torch.tensor([[-1, 99, 5]]))
    assert tokens.check() is tokens  # ids in padding slots are unspecified
    empty = TokenTensor(spec=SPEC, indices=torch.empty(0, 0, dtype=torch.int64))
    assert empty.check() is empty


_BROKEN: list[tuple[dict[str, object], str]] = [
    ({"embeds": torch.ones(3)}, r"expected embeds \[B, N, D\] or indices \[B, N\], got \[3\]"),
    ({"embeds": torch.ones(1, 3)}, r"embeds: expected \[B, N, D\] floating with B=1, N=3, got \[1, 3\]"),
    ({"embeds": torch.ones(1, 3, 2).long()}, r"embeds: expected \[B, N, D\] floating, got dtype torch.int64"),
    ({"embeds": torch.ones(1, 3, 5)}, r"embeds: expected width 2 \(spec.dim\), got \[1, 3, 5\]"),
    ({"indices": torch.ones(1, 4).long()}, r"indices: expected .* with B=1, N=3, got \[1, 4\]"),
    ({"indices": torch.ones(1, 3).int()}, r"indices: expected .* int64, got dtype torch.int32"),
    ({"indices": torch.ones(1, 3, 2).long()}, r"indices: expected 1 codebooks \(spec\), got \[1, 3, 2\]"),
    ({"indices": torch.tensor([[0, 8, 1]])}, r"indices: expected ids in 0..K-1 .*K=\(8,\), got 0..8"),
    ({"indices": torch.tensor([[0, -1, 1]])}, r"indices: expected ids .* got -1..1"),
    ({"lengths": torch.tensor([1, 1])}, r"lengths: expected \[B\] int64 with B=1, got \[2\]"),
    ({"lengths": torch.tensor([1.0])}, r"lengths: expected \[B\] int64 .* torch.float32"),
    ({"lengths": torch.tensor([4])}, r"lengths: expected values in 0..3, got \[4\]"),
    ({"lengths": torch.tensor([-1])}, r"lengths: expected values in 0..3, got \[-1\]"),
    ({"coords": torch.ones(1, 3).int()}, r"coords: expected \[B, N, A\] int32 with B=1, N=3, got \[1, 3\]"),
    ({"coords": torch.ones(1, 3, 2)}, r"coords: expected \[B, N, A\] int32, got dtype torch.float32"),
    ({"scores": torch.ones(1, 3).half()}, r"scores: expected \[B, N\] float32, got dtype torch.float16"),
    ({"source": torch.ones(2, 3).long()}, r"source: expected \[B, N\] int64 with B=1, N=3, got \[2, 3\]"),
    ({"sizes": torch.ones(1, 3, 1)}, r"sizes: expected \[B, N\] float32 with B=1, N=3, got \[1, 3, 1\]"),
    ({"sizes": torch.ones(1, 3, device="meta")}, r"sizes: expected device cpu, got meta"),
    ({"spec": TokenSpec("toy", order="snake")}, r"TokenSpec.order: expected one of .* got 'snake'"),
    ({"spec": TokenSpec("toy", grid=[1, 3])}, r"TokenSpec.grid: expected a tuple, got \[1, 3\]"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("fields", "message"), _BROKEN)
def test_check_names_field_expectation_and_what_was_given(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        item(3).replace(**fields).check()


def test_repr_is_one_line_with_shapes_lengths_and_spec() -> None:
    batch = TokenTensor.cat([item(3), item(1)])
    assert repr(batch) == "TokenTensor(embeds[2, 3, 2], indices[2, 3], lengths 1..3; toy 1x3 raster)"
    assert repr(item(3)) == "TokenTensor(embeds[1, 3, 2], indices[1, 3]; toy 1x3 raster)"


def test_repr_survives_what_pytree_vmap_and_meta_put_in_place_of_tensors() -> None:
    batch = TokenTensor.cat([item(3), item(1)])
    assert "embeds(int)" in repr(pytree.tree_map(lambda _: 0, batch))
    assert "lengths[2]" in repr(batch.to("meta"))
    seen: list[str] = []

    def look(tokens: TokenTensor) -> Tensor:
        seen.append(repr(tokens))
        assert tokens.embeds is not None
        return tokens.embeds.sum()

    torch.vmap(look)(batch)
    assert "embeds[3, 2]" in seen[0]
