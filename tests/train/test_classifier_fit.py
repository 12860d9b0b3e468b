import math

import pytest
import torch
from torch import Tensor, nn

from vistok.train.classifier_fit import Recipe, fit, predicted


@pytest.fixture
def points() -> tuple[Tensor, Tensor]:
    """60 points of three classes that a linear layer can tell apart."""
    draw = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    return torch.eye(4)[labels] + 0.1 * torch.randn(60, 4, generator=draw), labels


def test_rates_rise_from_zero_and_fall_on_a_cosine() -> None:
    recipe = Recipe(1.0, 0.0)
    half = 0.5  # a batch of 128 for 256
    expected = {0: 0.0, 5: 0.5, 10: 1.0, 55: 0.5, 99: 0.5 * (1 + math.cos(math.pi * 89 / 90))}
    assert {epoch: recipe.rate(epoch) for epoch in expected} == pytest.approx(
        {epoch: half * factor for epoch, factor in expected.items()}
    )


@pytest.mark.parametrize(("solver", "rate"), [("adam", 2.0), ("sgd", 5.0)])
def test_a_fit_learns_and_the_same_seed_gives_the_same_bits(
    points: tuple[Tensor, Tensor], solver: str, rate: float
) -> None:
    rows, labels = points

    def fitted(seed: int) -> nn.Linear:
        torch.manual_seed(0)
        layer = nn.Linear(4, 3)
        last = fit(layer, lambda ids: layer(rows[ids]), labels, Recipe(rate, 0.0, solver, 16, 12, 2), seed)
        assert last < 0.3
        assert torch.equal(predicted(lambda ids: layer(rows[ids]), torch.arange(60), 7), labels)
        return layer

    first, again, other = fitted(1), fitted(1), fitted(2)
    assert torch.equal(first.weight, again.weight) and not torch.equal(first.weight, other.weight)


def test_the_first_epoch_moves_nothing_and_what_is_frozen_stays(points: tuple[Tensor, Tensor]) -> None:
    rows, labels = points
    layer = nn.Linear(4, 3)
    before = layer.weight.clone()
    fit(layer, lambda ids: layer(rows[ids]), labels, Recipe(1.0, 0.1, epochs=2, warm_epochs=1, batch=60), 0)
    assert not torch.equal(layer.weight, before)
    layer.weight.requires_grad_(False)
    before = layer.weight.clone()
    fit(layer, lambda ids: layer(rows[ids]), labels, Recipe(1.0, 0.1, epochs=3, warm_epochs=1), 0)
    assert torch.equal(layer.weight, before)
    still = nn.Linear(4, 3)
    before = still.weight.clone()
    recipe = Recipe(1.0, 0.1, epochs=2, warm_epochs=1, batch=16)
    fit(still, lambda ids: still(rows[ids]), labels[:16], recipe, 0)
    moved = (still.weight - before).abs().max()
    assert 0 < float(moved.detach()) <= recipe.rate(1) * 1.01  # one step of Adam: epoch 0 has rate 0


def test_decay_draws_weights_to_zero_and_leaves_biases(points: tuple[Tensor, Tensor]) -> None:
    rows, labels = points
    layer = nn.Linear(4, 3)
    nn.init.constant_(layer.weight, 0.5)
    # Nothing but the decay has a gradient.
    fit(layer, lambda ids: 0 * layer(rows[ids]), labels, Recipe(0.4, 1.0, epochs=30, warm_epochs=1, batch=60), 0)
    bias = layer.bias.detach().clone()
    assert layer.weight.abs().max() < 0.1
    fit(layer, lambda ids: 0 * layer(rows[ids]), labels, Recipe(0.2, 1.0, epochs=5, warm_epochs=1), 0)
    assert torch.equal(layer.bias, bias)


def test_a_penalty_joins_the_loss_and_a_loss_that_is_not_finite_ends_the_fit(points: tuple[Tensor, Tensor]) -> None:
    rows, labels = points
    layer = nn.Linear(4, 3)
    recipe = Recipe(0.1, 0.0, epochs=2, warm_epochs=1, batch=60)
    plain = fit(layer, lambda ids: 0 * layer(rows[ids]), labels, recipe, 0)
    assert plain == pytest.approx(math.log(3))
    more = fit(layer, lambda ids: 0 * layer(rows[ids]), labels, recipe, 0, penalty=lambda: layer.weight.sum() * 0 + 2)
    assert more == pytest.approx(math.log(3) + 2)
    calls = []

    def broken(ids: Tensor) -> Tensor:
        calls.append(len(ids))
        return layer(rows[ids]) * math.nan

    assert math.isnan(fit(layer, broken, labels, recipe, 0)) and len(calls) == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"solver": "lion"}, "adam or sgd, got 'lion'"), ({"batch": 0}, "batch >= 1"), ({"epochs": 10}, "< epochs")],
)
def test_a_recipe_that_cannot_be_is_refused(settings: dict[str, int | str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Recipe(0.1, 0.0, **settings)  # type: ignore[arg-type]
