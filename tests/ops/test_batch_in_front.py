"""vmap in one call: mapped and shared tensors, any mapped axis, one result or several."""

import pytest
import torch
from torch import Tensor

from vistok.ops.batch_in_front import batch_in_front

CALLS: list[tuple[int, ...]] = []


@torch.library.custom_op("vistok_test::weighted", mutates_args=())
def weighted(x: Tensor, weight: Tensor, powers: list[int]) -> tuple[Tensor, Tensor]:
    """x, weight [..., D] -> (x * weight) to each power, and its sum [...]."""
    CALLS.append(tuple(x.shape))
    product = x * weight
    return product ** torch.tensor(powers), product.sum(-1)


@torch.library.custom_op("vistok_test::negative", mutates_args=())
def negative(x: Tensor) -> Tensor:
    return -x


batch_in_front(weighted)
batch_in_front(negative)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_it_equals_a_loop_and_calls_once(axis: int, shared: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(4, 5, 3, generator=generator), torch.randn(4, 5, 3, generator=generator)
    weights = [weight.select(axis, 0 if shared else item) for item in range(x.shape[axis])]
    expected = [weighted(a, b, [1, 2, 3]) for a, b in zip(x.unbind(axis), weights, strict=True)]
    CALLS.clear()
    mapped = torch.func.vmap(lambda a, b: weighted(a, b, [1, 2, 3]), (axis, None if shared else axis))
    found = mapped(x, weights[0] if shared else weight)
    assert len(CALLS) == 1
    for result, parts in zip(found, zip(*expected, strict=True), strict=True):
        torch.testing.assert_close(result, torch.stack(parts))


def test_one_result_is_fine() -> None:
    x = torch.randn(4, 5, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.func.vmap(negative, in_dims=2, out_dims=2)(x), -x)
