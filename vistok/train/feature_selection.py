"""From a trained VQT to one with a part of its features (arXiv:2212.03220 after Head2Toe, arXiv:2201.03529).

The queries are frozen, so that features may be worked out once. A new head under group lasso says which features count,
and another one is trained on these alone, both at half the rate. N images, F features, C classes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace

from torch import Tensor

from vistok.layers.group_lasso import group_lasso, select_features
from vistok.readouts.vqt_classifier import VQTClassifier
from vistok.train.classifier_fit import Recipe, fit


def keep_features(
    model: VQTClassifier,
    features: Tensor,
    labels: Tensor,
    recipe: Recipe,
    seed: int,
    *,
    keep: float,
    strength: float,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> None:
    """Prune the head of `model` to the share `keep` of its features [N, F] and train it on them; labels [N] int64.

    recipe: the one that the model was trained by. strength: of the group lasso. around: entered for each of the two
    fits. Raises: ValueError for a share that keeps nothing or more than there is, or a head that is pruned already.
    """
    half = replace(recipe, learning_rate=recipe.learning_rate / 2)
    head = model.head
    if head.select_ids is not None:
        raise ValueError(f"keep_features: expected a head with all features, got one pruned to {len(head.select_ids)}")

    def logits(rows: Tensor) -> Tensor:
        found: Tensor = head(features[rows])
        return found

    head.reset_parameters()
    with around():
        fit(head, logits, labels, half, seed, penalty=lambda: strength * group_lasso(head.weight))
        ids = select_features(head.weight, keep)
    head.prune(ids)
    with around():
        fit(head, logits, labels, half, seed)
