import pytest
import torch

from vistok.layers.group_lasso import feature_scores, group_lasso, select_features

WEIGHT = torch.tensor([[3.0, 0.0, 1.0, 0.0], [4.0, 2.0, 0.0, 0.0]])


def test_it_is_the_sum_of_the_lengths_of_columns() -> None:
    assert feature_scores(WEIGHT).tolist() == [5.0, 2.0, 1.0, 0.0]
    assert float(group_lasso(WEIGHT)) == 8.0


def test_its_gradient_is_the_direction_of_each_column_and_zero_for_zeros() -> None:
    weight = WEIGHT.clone().requires_grad_()
    group_lasso(weight).backward()
    expected = torch.tensor([[0.6, 0.0, 1.0, 0.0], [0.8, 1.0, 0.0, 0.0]])
    torch.testing.assert_close(weight.grad, expected)


@pytest.mark.parametrize(("fraction", "ids"), [(0.5, [0, 1]), (0.74, [0, 1]), (0.75, [0, 1, 2]), (1.0, [0, 1, 2, 3])])
def test_the_largest_come_first_and_their_number_is_rounded_down(fraction: float, ids: list[int]) -> None:
    assert select_features(WEIGHT, fraction).tolist() == ids


def test_wrong_input_is_refused() -> None:
    with pytest.raises(ValueError, match=r"keeps 1 to 4 features, got 0.2 \(0\)"):
        select_features(WEIGHT, 0.2)
    with pytest.raises(ValueError, match=r"expected a head's weight \[C, F\], got \[4\]"):
        group_lasso(WEIGHT[0])
