"""Joint diffusion: the forward process and both losses by hand, drawing from noise to data."""

import math

import pytest
import torch

from vistok.layers.joint_diffusion import JointDenoiser, Noised, noised

SIZES = (3, 2)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return JointDenoiser(SIZES, 2, 4, width=8, layers=1, heads=2)


def batch(count=2):
    draw = torch.Generator().manual_seed(1)
    digits = torch.stack([torch.randint(size, (count, 4), generator=draw) for size in SIZES], -1)
    return digits, torch.randn(count, 4, 2, generator=draw), torch.randn(count, 3, 8, generator=draw)


def test_each_part_is_noised_at_its_own_time():
    digits, z, _ = batch(2)
    t, s = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.25])
    seen = noised(digits, z, t, s, torch.Generator().manual_seed(0))
    assert torch.equal(seen.digits[0], digits[0]) and bool((seen.digits[1] == -1).all())
    assert torch.equal(seen.z[0], seen.eps[0])
    torch.testing.assert_close(seen.z[1], 0.75 * z[1] + 0.25 * seen.eps[1])


def test_half_of_the_ids_are_masked_at_time_one_half():
    digits, z = torch.zeros(50, 100, 1, dtype=torch.int64), torch.zeros(50, 100, 1)
    half = torch.full((50,), 0.5)
    hidden = noised(digits, z, half, half, torch.Generator().manual_seed(0)).digits < 0
    assert abs(float(hidden.float().mean()) - 0.5) < 0.03


def test_the_losses_by_hand_where_the_heads_say_nothing(model):
    digits, z, prompt = batch(1)
    for head in (model.id_head, model.z_head):
        torch.nn.init.zeros_(head.weight)
        torch.nn.init.zeros_(head.bias)
    t = torch.tensor([0.5])
    seen = Noised(digits.clone(), z, torch.zeros_like(z))
    seen.digits[0, 1] = -1  # one of four tokens is masked: log 6 nats over 4 tokens, times 1 / 0.5
    discrete, continuous = (term.detach() for term in model.loss(prompt, digits, z, t, t, seen))
    assert float(discrete) == pytest.approx(2 * math.log(6) / 4, rel=1e-5)
    assert float(continuous) == pytest.approx(float(z.square().mean()), rel=1e-5)


def test_every_head_hears_of_both_parts_and_of_both_times(model):
    digits, z, prompt = batch()
    t, s = torch.full((2,), 0.3), torch.full((2,), 0.6)
    first = model(prompt, digits, z, t, s)
    other = ((digits + 1) % torch.tensor(SIZES), z, t, s), (digits, z + 1, t, s), (digits, z, s, s), (digits, z, t, t)
    for changed in other:
        for one, two in zip(first, model(prompt, *changed), strict=True):
            assert not torch.allclose(one, two)


@pytest.mark.parametrize(("ids", "z"), [(True, False), (False, True), (True, True)])
def test_drawing_ends_with_whole_ids_and_the_same_draws_each_time(model, ids, z):
    prompt = batch()[2]
    made = [model.draw(prompt, steps=3, ids=ids, z=z, generator=torch.Generator().manual_seed(5)) for _ in range(2)]
    assert all(torch.equal(one, two) for one, two in zip(*made, strict=True))
    digits, vectors = made[0]
    assert bool((digits >= 0).all()) is ids and bool((digits < torch.tensor(SIZES)).all())
    assert vectors.shape == (2, 4, 2)


def test_drawing_needs_steps_and_a_part(model):
    prompt = batch()[2]
    for settings in ({"steps": 0}, {"steps": 2, "ids": False, "z": False}):
        with pytest.raises(ValueError, match="expected steps >= 1 and ids or z"):
            model.draw(prompt, **settings)


@pytest.mark.slow
def test_it_learns_to_copy_what_the_other_part_shows():
    torch.manual_seed(0)
    model = JointDenoiser((4,), 1, 3, width=16, layers=1, heads=2)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    draw = torch.Generator().manual_seed(0)
    t, s, prompt = torch.ones(32), torch.zeros(32), torch.zeros(32, 1, 16)
    for _ in range(60):
        digits = torch.randint(4, (32, 3, 1), generator=draw)
        z = digits.float() - 1.5  # vectors without noise tell every masked id
        loss = model.loss(prompt, digits, z, t, s, noised(digits, z, t, s, draw)).discrete
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(loss.detach()) < 0.3 < math.log(4)
