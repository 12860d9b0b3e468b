"""From a trained VQT to one with a part of its features (arXiv:2212.03220 after Head2Toe, arXiv:2201.03529).

The queries are frozen, so that features may be worked out once. A new head under group lasso says which features count,
and another one is fitted to these alone, both at half the rate; what that costs shows beside a head that is fitted so
to all of them. N images, F features, C classes.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor

from vistok.layers.feature_head import FeatureHead
from vistok.layers.group_lasso import group_lasso, select_features
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.train.classifier_fit import Recipe, fit

Around = Callable[[], AbstractContextManager[None]]


def refit_head(
    model: VQTClassifier, features: Tensor, labels: Tensor, recipe: Recipe, seed: int, *, around: Around = nullcontext
) -> None:
    """Fit the head of `model` anew to features [N, F], or to those of them that it keeps; labels [N] int64.

    recipe: the one that the model was trained by, at half the rate here. around: entered for the fit.
    Raises: FloatingPointError if the loss is not finite.
    """
    model.head.reset_parameters()
    with around():
        _fit(model.head, features, labels, recipe, seed)


def keep_features(
    model: VQTClassifier,
    features: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    keep: float,
    strength: float,
    around: Around = nullcontext,
) -> None:
    """Prune the head of `model` to the share `keep` of its features [N, F] and fit it to them; labels [N] int64.

    recipe, around: as `refit_head`, for each of the two fits. strength: of the group lasso. Raises: ValueError for a
    share that keeps nothing or more than there is, or a head that is pruned already; FloatingPointError as there.
    """
    head = model.head
    if head.select_ids is not None:
        raise ValueError(f"keep_features: expected a head with all features, got one pruned to {len(head.select_ids)}")
    head.reset_parameters()
    with around():
        _fit(head, features, labels, recipe, seed, penalty=lambda: strength * group_lasso(head.weight))
        ids = select_features(head.weight, keep)
    head.prune(ids)
    refit_head(model, features, labels, recipe, seed, around=around)


def _fit(
    head: FeatureHead,
    features: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    penalty: Callable[[], Tensor] | None = None,
) -> None:
    def logits(rows: Tensor) -> Tensor:
        found: Tensor = head(features[rows])
        return found

    half = replace(recipe, learning_rate=recipe.learning_rate / 2)
    loss = fit(head, logits, labels, half, seed, penalty=penalty)
    if not math.isfinite(loss):
        raise FloatingPointError(f"a new head on frozen queries: loss is {loss} with {half}; use smaller rates")
