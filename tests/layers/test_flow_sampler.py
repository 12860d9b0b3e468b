import pytest
import torch
from torch import Tensor

from vistok.layers.flow_sampler import Guidance, euler_times, flow_loss, sample


def towards(target: Tensor):
    """The exact velocity of a flow whose data are one point: (target - x) / t."""
    return lambda x, t, condition: (target - x) / t[:, None]


@pytest.mark.parametrize("steps", [1, 4, 16])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_exact_velocity_ends_at_the_data(steps: int, shift: float, generator: torch.Generator) -> None:
    target, noise = torch.randn(2, 3, 5, generator=generator)
    found = sample(towards(target), torch.zeros(1, 3, 2), noise, steps=steps, time_shift=shift)
    torch.testing.assert_close(found, target, rtol=0, atol=1e-5)


def test_times_fall_from_noise_to_data_and_a_shift_stays_near_the_noise() -> None:
    assert euler_times(4) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert euler_times(2, 3.0) == pytest.approx([1, 1 - 0.5 / (0.5 + 3 - 1.5), 0])
    for steps, shift in ((0, 1.0), (4, 0.0)):
        with pytest.raises(ValueError, match="steps >= 1 and time_shift > 0"):
            euler_times(steps, shift)


def test_guidance_follows_its_formula() -> None:
    c, u, i = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]], [[2.0, 2.0]]])
    guide = Guidance(text=2.0, image=1.5)
    torch.testing.assert_close(guide.combine(torch.stack([c])), c)
    torch.testing.assert_close(guide.combine(torch.stack([c, u])), u + 2 * (c - u))
    guided = u + 1.5 * (i - u) + 2 * (c - i)
    torch.testing.assert_close(guide.combine(torch.stack([c, u, i])), guided)
    shorter = Guidance(2.0, 1.5, renormalize=True).combine(torch.stack([c, u, i]))
    torch.testing.assert_close(shorter, guided * 5 / guided.norm())
    torch.testing.assert_close(Guidance(0.1, renormalize=True).combine(torch.stack([c, u])), u + 0.1 * (c - u))
    with pytest.raises(ValueError, match="1, 2 or 3 rows"):
        guide.combine(torch.zeros(4, 1, 2))


def test_rows_of_a_token_share_its_noise(generator: torch.Generator) -> None:
    seen = []

    def velocity(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        seen.append(x.unflatten(0, (3, 2)))
        return condition[:, :4]

    sample(velocity, torch.randn(3, 2, 6, generator=generator), torch.randn(2, 4, generator=generator), steps=3)
    assert len(seen) == 3
    for x in seen:
        assert torch.equal(x[0], x[1]) and torch.equal(x[0], x[2])


def test_the_loss_of_the_right_velocity_is_zero_and_of_none_is_the_mean_square(generator: torch.Generator) -> None:
    z = torch.randn(2, 3, 5, generator=generator)
    condition = z.clone()  # tells the net the answer

    def right(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        noise = (x - (1 - t[:, None]) * condition) / t[:, None]
        return condition - noise

    assert flow_loss(right, z, condition, repeats=4, generator=generator) < 1e-6
    still = flow_loss(lambda x, t, c: torch.zeros_like(x), z, condition, repeats=2000, generator=generator)
    torch.testing.assert_close(still, z.square().mean() + 1, rtol=0.05, atol=0)


def test_weights_choose_the_tokens_that_count(generator: torch.Generator) -> None:
    z = torch.randn(2, 3, 5, generator=generator)
    weights = torch.tensor([[1.0, 0, 0], [0, 0, 0]])

    def wrong_elsewhere(x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        noise = (x - (1 - t[:, None]) * z.reshape(-1, 5)) / t[:, None]
        return z.reshape(-1, 5) - noise + 100 * (1 - weights.reshape(-1, 1))

    assert flow_loss(wrong_elsewhere, z, z, weights=weights, generator=generator) < 1e-6
    assert flow_loss(wrong_elsewhere, z, z, generator=generator) > 100
    assert flow_loss(wrong_elsewhere, z, z, weights=0 * weights, generator=generator) == 0


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conditions \[R, B, Z\] and noise \[B, C\]"):
        sample(towards(torch.zeros(1)), torch.zeros(1, 3, 2), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"expected conditions \[2, 3, 'Z'\]"):
        flow_loss(towards(torch.zeros(1)), torch.zeros(2, 3, 5), torch.zeros(3, 5))
