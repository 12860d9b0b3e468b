import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vistok.metrics.frechet import frechet_distance


def features(count, width, seed):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_singular_values(first, second):
    """The same distance another way: Tr (S1 S2)^{1/2} is the nuclear norm of A^T B, S1 = A A^T and S2 = B B^T."""
    a, b = ((x - x.mean(0)).T / (len(x) - 1) ** 0.5 for x in (first, second))
    cross = torch.linalg.svdvals(a.T @ b).sum()
    return (first.mean(0) - second.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross


def test_one_dimension_by_hand():
    # N(1, 2) and N(4, 8): 3^2 + 2 + 8 - 2 sqrt(16) = 11
    first, second = torch.tensor([[0.0], [2.0]]), torch.tensor([[2.0], [6.0]])
    assert float(frechet_distance(first, second)) == pytest.approx(11)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 24), st.integers(0, 1000))
def test_it_is_the_formula_also_with_fewer_images_than_features(count, other, width, seed):
    first, second = features(count, width, seed), 2 * features(other, width, seed + 1) + 0.5
    expected = float(by_singular_values(first, second))
    assert float(frechet_distance(first, second)) == pytest.approx(expected, abs=1e-5)


def test_a_cloud_is_at_distance_zero_from_itself_and_a_shift_counts_squared():
    cloud = features(8, 30, 0)
    assert float(frechet_distance(cloud, cloud)) == pytest.approx(0, abs=1e-5)
    assert float(frechet_distance(cloud + 0.5, cloud)) == pytest.approx(30 * 0.25, abs=1e-5)


def test_too_few_images_or_other_features_are_refused():
    with pytest.raises(ValueError, match=r"at least 2 images, got \[1, 4\]"):
        frechet_distance(features(1, 4, 0), features(3, 4, 0))
    with pytest.raises(ValueError, match=r"\[3, 4\] and \[3, 5\]"):
        frechet_distance(features(3, 4, 0), features(3, 5, 0))
