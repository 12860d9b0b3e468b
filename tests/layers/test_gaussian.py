"""The diagonal Gaussian: values worked out by hand, and the divergence checked against torch.distributions."""

import math

import torch
from torch.distributions import Normal, kl_divergence

from vistok.layers.gaussian import Gaussian


def test_the_divergence_of_two_numbers() -> None:
    posterior = Gaussian(torch.tensor([1.0, 0.0]), torch.tensor([0.0, math.log(4.0)]))
    first, second = 0.5, 0.5 * (4 - 1 - math.log(4.0))
    torch.testing.assert_close(posterior.kl(), torch.tensor((first + second) / 2))


def test_the_divergence_equals_that_of_torch_distributions(generator: torch.Generator) -> None:
    mean, logvar = torch.randn(2, 5, 7, generator=generator).unbind()
    expected = kl_divergence(Normal(mean, logvar.mul(0.5).exp()), Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(Gaussian(mean, logvar).kl(), expected)


def test_the_unit_gaussian_has_no_divergence() -> None:
    assert Gaussian(torch.zeros(3), torch.zeros(3)).kl() == 0


def test_moments_are_split_mean_first_in_float32_and_clamped() -> None:
    posterior = Gaussian.from_moments(torch.tensor([[1.0, 2.0, -99.0, 99.0]], dtype=torch.bfloat16))
    assert posterior.mean.tolist() == [[1, 2]]
    assert posterior.logvar.tolist() == [[-30, 20]]
    assert posterior.mean.dtype == torch.float32


def test_samples_have_the_mean_and_spread(generator: torch.Generator) -> None:
    mean, logvar = torch.tensor([3.0, -1.0]), torch.tensor([math.log(0.25), math.log(4.0)])
    draws = Gaussian(mean.expand(20000, 2), logvar.expand(20000, 2)).sample(generator)
    torch.testing.assert_close(draws.mean(0), mean, rtol=0, atol=0.06)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 2.0]), rtol=0.03, atol=0)


def test_a_generator_repeats_the_sample() -> None:
    posterior = Gaussian(torch.zeros(8), torch.zeros(8))
    first, again, other = (posterior.sample(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_gradients_of_a_sample_reach_both_moments(generator: torch.Generator) -> None:
    moments = torch.zeros(1, 4, requires_grad=True)
    Gaussian.from_moments(moments).sample(generator).sum().backward()
    assert moments.grad is not None
    assert moments.grad[0, :2].tolist() == [1, 1]
    assert (moments.grad[0, 2:] != 0).all()
