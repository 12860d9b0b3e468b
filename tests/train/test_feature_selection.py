import math
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vistok.readouts.vqt import VQT
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.train.classifier_fit import Recipe
from vistok.train.feature_selection import keep_features, refit_head


@pytest.fixture
def model() -> VQTClassifier:
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=16, depth=1, embed_dim=16, num_heads=2, num_classes=0
    )
    return VQTClassifier(VQT(vit, 1), 2)


def features_of(labels: Tensor) -> Tensor:
    """32 features of noise, but for numbers 5 and 20, which tell the label."""
    found = 0.3 * torch.randn(len(labels), 32, generator=torch.Generator().manual_seed(0))
    found[:, 5] = labels.float() * 2 - 1
    found[:, 20] = 1 - labels.float() * 2
    return found


def test_the_features_that_tell_the_label_are_kept_first_and_suffice(model: VQTClassifier) -> None:
    labels = torch.arange(80) % 2
    features = features_of(labels)
    queries = model.vqt.queries.detach().clone()
    recipe = Recipe(1.5, 0.0, batch=40, epochs=60, warm_epochs=2)
    keep_features(model, features, labels, recipe, 0, keep=0.1, strength=0.03)
    assert model.head.select_ids is not None and len(model.head.select_ids) == 3
    assert set(model.head.select_ids[:2].tolist()) == {5, 20}
    assert model.head.weight.shape == (2, 3)
    assert torch.equal(model.head(features).argmax(1), labels)
    assert torch.equal(model.vqt.queries, queries)
    with pytest.raises(ValueError, match="pruned"):
        keep_features(model, features, labels, recipe, 0, keep=0.1, strength=0.03)


def test_both_fits_are_at_half_the_rate_the_first_with_the_lasso_inside_what_was_asked_around(
    model: VQTClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[float, bool]] = []
    entered: list[str] = []

    def fitted(*args: Any, penalty: Any = None) -> float:
        recipe: Recipe = args[3]
        calls.append((recipe.learning_rate, penalty is not None))
        if penalty is not None:
            expected = 0.5 * model.head.weight.norm(dim=0).sum()
            torch.testing.assert_close(penalty(), expected)
        assert entered[-1] == "in"
        return 0.0

    @contextmanager
    def around() -> Any:
        entered.append("in")
        yield
        entered.append("out")

    monkeypatch.setattr("vistok.train.feature_selection.fit", fitted)
    labels = torch.arange(8) % 2
    settings = {"keep": 0.5, "strength": 0.5, "around": around}
    keep_features(model, features_of(labels), labels, Recipe(0.4, 0.0), 0, **settings)  # type: ignore[arg-type]
    assert calls == [(0.2, True), (0.2, False)] and entered == ["in", "out"] * 2


def test_a_head_fitted_again_sees_all_features_and_leaves_the_queries_alone(model: VQTClassifier) -> None:
    labels = torch.arange(80) % 2
    features, queries = features_of(labels), model.vqt.queries.detach().clone()
    refit_head(model, features, labels, Recipe(1.5, 0.0, batch=40, epochs=60, warm_epochs=2), 0)
    assert model.head.select_ids is None and torch.equal(model.head(features).argmax(1), labels)
    assert torch.equal(model.vqt.queries, queries)


def test_a_fit_that_does_not_stay_finite_is_no_result(model: VQTClassifier) -> None:
    labels = torch.arange(80) % 2
    for again in (refit_head, partial(keep_features, keep=0.5, strength=1e300)):
        features = features_of(labels) * (math.nan if again is refit_head else 1.0)
        with pytest.raises(
            FloatingPointError, match="a new head on frozen queries: loss is (nan|inf) .* smaller rates"
        ):
            again(model, features, labels, Recipe(1.5, 0.0, batch=40, epochs=3, warm_epochs=2), 0)
