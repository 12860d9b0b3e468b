import pytest
import torch

from vistok.train.latent_statistics import RunningMoments, latent_statistics


def test_one_pass_in_pieces_is_as_exact_as_all_at_once(generator: torch.Generator) -> None:
    """A mean a million times the spread is where sums of squares fail."""
    values = 1e6 + torch.randn(60, 7, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 2.0, 0.5])
    found = latent_statistics(lambda images: values[images.long()], torch.arange(60).split([1, 22, 30, 7]), 3)
    rows = values.reshape(-1, 3)
    torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-14, atol=0)
    torch.testing.assert_close(found.std, rows.std(0, correction=0), rtol=1e-9, atol=0)
    assert found.overall_mean == pytest.approx(float(rows.mean()), rel=1e-14)
    assert found.overall_std == pytest.approx(float(rows.std(correction=0)), rel=1e-9)


def test_moments_of_two_workers_are_merged(generator: torch.Generator) -> None:
    values = torch.randn(50, 2, generator=generator)
    whole, left, right = RunningMoments(2), RunningMoments(2), RunningMoments(2)
    whole.update(values)
    left.update(values[:9])
    right.update(values[9:])
    left.merge(right)
    left.merge(RunningMoments(2))
    assert left.count == 50
    torch.testing.assert_close(left.result().std, whole.result().std)
    torch.testing.assert_close(left.result().mean, whole.result().mean)


def test_nothing_and_what_is_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one latent"):
        RunningMoments(2).result()
    with pytest.raises(ValueError, match=r"finite latents \[..., 2\]"):
        RunningMoments(2).update(torch.tensor([[1.0, float("inf")]]))
    with pytest.raises(ValueError, match=r"\[..., 2\]"):
        RunningMoments(2).update(torch.zeros(4, 3))
