"""The poison around tensors: operations that step beside one are found, others notice nothing."""

import sys
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from vistok.ops import fsq
from vistok.ops.dispatch import Backend

from .guard import Block, Fences, fence_all, fenced, fenced_back_ends
from .table import answer, declared


class Pair(NamedTuple):
    """Tensors in a container, as ops take them."""

    first: Tensor
    second: Tensor


def beside(tensor: Tensor, steps: int) -> Tensor:
    """The number that lies `steps` behind the first one in memory, whatever it belongs to."""
    return tensor.as_strided((1,), (1,), tensor.storage_offset() + steps)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(12.0).reshape(3, 4),
        torch.arange(12.0).reshape(3, 4)[:, ::2].T,
        torch.arange(4, dtype=torch.int64).expand(3, 4),
        torch.tensor([True, False]),
        torch.tensor(2.0, dtype=torch.bfloat16),
    ],
    ids=["rows", "strided", "repeated", "bool", "one-number"],
)
def test_a_fenced_tensor_has_its_numbers_and_strides_and_poison_on_both_sides(tensor: Tensor) -> None:
    blocks: list[Block] = []
    found = fenced(tensor, blocks)
    assert torch.equal(found, tensor) and found.stride() == tensor.stride() and blocks[0].intact
    extent = blocks[0].memory.numel() - 2 * found.storage_offset()
    for steps in (-1, extent):
        place = beside(found, steps)
        kind = tensor.dtype
        assert bool(place.isnan() if kind.is_floating_point else place == (1 if kind == torch.bool else 2**63 - 1))
        before = place.clone()
        place.fill_(0)
        assert not blocks[0].intact
        place.copy_(before)


def test_a_number_written_into_the_gap_of_strided_rows_is_found() -> None:
    blocks: list[Block] = []
    found = fenced(torch.zeros(3, 8)[:, :5], blocks)
    beside(found, 4).fill_(1)
    assert blocks[0].intact
    beside(found, 5).fill_(1)
    assert not blocks[0].intact


def test_containers_keep_their_kind() -> None:
    blocks: list[Block] = []
    given = {"pair": Pair(torch.ones(2), torch.zeros(3)), "list": [torch.ones(1)], "count": 5}
    found = fence_all(given, blocks)
    assert isinstance(found["pair"], Pair) and found["count"] == 5 and len(blocks) == 3


def test_tensors_made_inside_are_fenced_and_views_are_not_moved() -> None:
    blocks: list[Block] = []
    x = torch.arange(6.0)
    with Fences(blocks):
        made, view = torch.empty(4), x[2:]
        copied = x.to(torch.float64)
    assert len(blocks) == 2 and view.data_ptr() == x.data_ptr() + 8
    assert torch.equal(copied, x.double())
    beside(made, 4).fill_(0)
    assert [block.intact for block in blocks] == [False, True]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_results_of_every_back_end_are_fenced_only_inside(backend: str) -> None:
    blocks: list[Block] = []
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    with fenced_back_ends(blocks):
        codes, ids = fsq(z, [5, 3], backend=backend)
    starts = {block.memory.data_ptr() for block in blocks}
    assert all(found.untyped_storage().data_ptr() in starts for found in (codes, ids))
    count = len(blocks)
    fsq(z, [5, 3], backend=backend)
    assert len(blocks) == count


def test_an_op_that_reads_or_writes_beside_its_tensors_fails_its_case(monkeypatch: pytest.MonkeyPatch) -> None:
    table: dict[str, Backend] = sys.modules[fsq.__module__].BACKENDS
    right = table["cpu"]
    case = next(case for case in declared("CASES") if case.id == "fsq-published")

    def roomy(tensor: Tensor) -> bool:
        return tensor.untyped_storage().nbytes() > tensor.nbytes

    def writes_too_far(z: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        buffer = torch.empty(len(z))
        if roomy(buffer):
            beside(buffer, len(z)).zero_()
        return right.run(z, levels)

    def reads_too_far(z: Tensor, levels: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        codes, ids = right.run(z, levels)
        return (codes + beside(z, z.numel()) if roomy(z) else codes), ids

    answer(case, "cpu")
    monkeypatch.setitem(table, "cpu", replace(right, run=writes_too_far))
    with pytest.raises(AssertionError, match="written beside a tensor"):
        answer(case, "cpu")
    monkeypatch.setitem(table, "cpu", replace(right, run=reads_too_far))
    with pytest.raises(AssertionError, match="not equal"):
        answer(case, "cpu")
