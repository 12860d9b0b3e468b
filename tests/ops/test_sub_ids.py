"""Factorised ids: by hand, there and back, and which channels of the code each part holds."""

import pytest
import torch

from vistok.ops.lfq import lfq, lfq_unpack
from vistok.ops.sub_ids import join_ids, split_ids


def test_by_hand() -> None:
    ids = torch.tensor([0b1011_01, -1])
    assert split_ids(ids, [2, 4]).tolist() == [[0b01, 0b1011], [-1, -1]]
    assert join_ids(torch.tensor([[0b01, 0b1011], [-1, 3], [2, -1]]), [2, 4]).tolist() == [0b1011_01, -1, -1]


@pytest.mark.parametrize("bits", [(6, 12), (9, 9), (18,), (3, 7, 8)])
def test_every_id_comes_back_and_parts_lie_in_their_range(bits: tuple[int, ...]) -> None:
    ids = torch.arange(2**18).reshape(2, -1)
    parts = split_ids(ids, bits)
    assert parts.shape == (*ids.shape, len(bits)) and parts.dtype == torch.int64
    assert [int(part.max()) for part in parts.unbind(-1)] == [2**width - 1 for width in bits]
    assert torch.equal(join_ids(parts, bits), ids)


def test_parts_of_lsb_ids_are_the_ids_of_their_channels() -> None:
    z = torch.randn(200, 18, generator=torch.Generator().manual_seed(0))
    codes, ids = lfq(z, bit_order="lsb")
    first, second = split_ids(ids, (6, 12)).unbind(-1)
    assert torch.equal(first, lfq(z[:, :6].contiguous(), bit_order="lsb")[1])
    assert torch.equal(second, lfq(z[:, 6:].contiguous(), bit_order="lsb")[1])
    assert torch.equal(
        torch.cat([lfq_unpack(first, 6, bit_order="lsb"), lfq_unpack(second, 12, bit_order="lsb")], 1), codes
    )


def test_mistakes_are_named() -> None:
    for bits in ([], [0, 3], [40, 40]):
        with pytest.raises(ValueError, match="split_ids: expected positive numbers of bits, at most 62"):
            split_ids(torch.zeros(2, dtype=torch.int64), bits)
    with pytest.raises(ValueError, match="expected ids"):
        split_ids(torch.tensor([64]), [3, 3])
    with pytest.raises(ValueError, match="expected ids"):
        join_ids(torch.tensor([[8, 0]]), [3, 3])
    with pytest.raises(ValueError, match=r"expected parts \[..., 2\], got \[4, 3\]"):
        join_ids(torch.zeros(4, 3, dtype=torch.int64), [6, 12])
