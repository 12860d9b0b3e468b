"""A linear probe: how well a single linear layer reads labels off frozen features (Alain & Bengio, arXiv:1610.01644).

Multinomial logistic regression with an L2 penalty, features standardised by the training rows, solved by at most
300 steps of L-BFGS, so that no learning rate decides who wins. T rows, D width of features, K classes.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional


class Probe(NamedTuple):
    """accuracy on the rows held out, in 0..1; chance: of always naming their commonest class."""

    accuracy: float
    chance: float


def linear_probe(
    features: Tensor, labels: Tensor, held_out: Tensor, held_out_labels: Tensor, *, penalty: float = 1e-3
) -> Probe:
    """Fit on features [T, D] with labels [T] int64 >= 0, measure on held_out [T', D] with its labels [T'].

    penalty: weight of the sum of squared weights beside the mean cross entropy.
    Raises: ValueError for shapes that do not belong together, no rows, or fewer than two classes to learn.
    """
    pairs = ((features, labels), (held_out, held_out_labels))
    if any(rows.ndim != 2 or ids.shape != rows.shape[:1] or not len(rows) for rows, ids in pairs) or (
        features.shape[1] != held_out.shape[1]
    ):
        shapes = [list(value.shape) for pair in pairs for value in pair]
        raise ValueError(f"linear probe: expected features [T, D] and labels [T] twice, same D, T >= 1, got {shapes}")
    if len(labels.unique()) < 2:
        raise ValueError("linear probe: expected labels of at least two classes, got one")
    classes = int(torch.cat([labels, held_out_labels]).max()) + 1
    # In inference mode nothing can be fitted, and its tensors cannot be saved for a gradient: copies outside of it can.
    with torch.inference_mode(False), torch.enable_grad():
        rows, tests = features.detach().double().clone(), held_out.detach().double().clone()
        right = _predictions(rows, labels.clone(), tests, classes, penalty) == held_out_labels
    commonest = torch.bincount(held_out_labels).max() / len(held_out_labels)
    return Probe(float(right.double().mean()), float(commonest))


def _predictions(rows: Tensor, labels: Tensor, tests: Tensor, classes: int, penalty: float) -> Tensor:
    """The classes [T'] of tests [T', D], fitted on rows [T, D]."""
    mean, std = rows.mean(0), rows.std(0, correction=0)
    scale = torch.where(std > 1e-9 * mean.abs().clamp(min=1), std, 1.0)  # a constant channel says nothing
    rows, tests = (rows - mean) / scale, (tests - mean) / scale
    weight = rows.new_zeros(classes, rows.shape[1], requires_grad=True)
    bias = rows.new_zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=300, tolerance_grad=1e-7, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        fit = functional.cross_entropy(functional.linear(rows, weight, bias), labels)
        value: Tensor = fit + penalty * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return functional.linear(tests, weight, bias).argmax(-1)
