import pytest
import torch

from vistok.metrics.paired_accuracy import paired_difference


def coin(share: float, *shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share


def test_the_mean_is_that_of_accuracies_and_the_same_answers_differ_by_nothing() -> None:
    first, second = coin(0.8, 3, 50), coin(0.6, 3, 50, seed=1)
    found = paired_difference(first, second)
    assert found.mean == pytest.approx(float(first.double().mean() - second.double().mean()))
    assert found.low < found.mean < found.high
    assert paired_difference(first, first) == (0, 0, 0)
    turned = paired_difference(second, first)
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-found.mean, -found.high, -found.low), abs=1e-6)


def test_the_interval_of_independent_images_is_the_one_of_the_normal_approximation() -> None:
    gain = coin(0.3, 1, 2000)
    found = paired_difference(gain, torch.zeros_like(gain))
    error = 1.96 * (float(gain.double().var()) / 2000) ** 0.5
    assert found.high - found.mean == pytest.approx(error, rel=0.15)
    assert found.mean - found.low == pytest.approx(error, rel=0.15)


def test_an_error_that_both_make_on_the_same_image_does_not_widen_it() -> None:
    hard = coin(0.5, 1, 1000)
    better = hard | coin(0.05, 1, 1000, seed=1)
    paired = paired_difference(better, hard)
    shuffled = paired_difference(better, hard[:, torch.randperm(1000, generator=torch.Generator().manual_seed(2))])
    assert paired.high - paired.low < 0.5 * (shuffled.high - shuffled.low)


def test_runs_that_disagree_widen_it() -> None:
    same = coin(0.5, 1, 500).expand(3, -1)
    apart = torch.stack([torch.ones(500), torch.zeros(500), same[0]]).bool()
    nothing = torch.zeros(3, 500, dtype=torch.bool)
    calm, wild = (paired_difference(first, nothing) for first in (same, apart))
    assert wild.high - wild.low > 2 * (calm.high - calm.low)


def test_tasks_count_alike_and_stay_paired() -> None:
    first, second = coin(0.8, 2, 3, 200), coin(0.5, 2, 3, 200, seed=1)
    each = [paired_difference(a, b).mean for a, b in zip(first, second, strict=True)]
    assert paired_difference(first, second).mean == pytest.approx(sum(each) / 2)
    twice = paired_difference(first[:1].expand(2, -1, -1), second[:1].expand(2, -1, -1))
    assert twice == pytest.approx(paired_difference(first[0], second[0]))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    for first, second in ((coin(0.5, 3, 4), coin(0.5, 3, 5)), (coin(0.5, 4), coin(0.5, 4))):
        with pytest.raises(ValueError, match="paired accuracy: expected"):
            paired_difference(first, second)
    with pytest.raises(ValueError, match="level"):
        paired_difference(coin(0.5, 3, 4), coin(0.5, 3, 4), level=1.0)
