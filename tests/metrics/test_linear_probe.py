import pytest
import torch

from vistok.metrics.linear_probe import linear_probe


def classes(count: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows around three corners of a plane, in four wide features of very different scale."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    corners = torch.tensor([[0.0, 0, 1, 5], [2, 0, 1, 5], [0, 2, 1, 5]])
    rows = corners[labels] + noise * torch.randn(count, 4, generator=generator)
    return rows * torch.tensor([1e3, 1e-3, 1.0, 0.0]), labels


def test_classes_that_a_plane_divides_are_told_apart() -> None:
    probe = linear_probe(*classes(200, 0.1, 0), *classes(100, 0.1, 1))
    assert probe.accuracy == 1.0 and 0.3 < probe.chance < 0.5


def test_features_that_say_nothing_are_near_chance_and_better_ones_score_higher() -> None:
    noise, labels = torch.randn(300, 5, generator=torch.Generator().manual_seed(2)), classes(300, 1.0, 0)[1]
    nothing = linear_probe(noise[:200], labels[:200], noise[200:], labels[200:])
    assert abs(nothing.accuracy - 1 / 3) < 0.15
    rough = linear_probe(*classes(200, 1.0, 0), *classes(100, 1.0, 1))
    assert nothing.accuracy + 0.1 < rough.accuracy < 1.0


def test_the_scale_of_features_does_not_matter() -> None:
    (rows, labels), (tests, truth) = classes(200, 0.8, 0), classes(100, 0.8, 1)
    one = linear_probe(rows, labels, tests, truth)
    other = linear_probe(rows * 1e4 + 3, labels, tests * 1e4 + 3, truth)
    assert one.accuracy == pytest.approx(other.accuracy, abs=0.021)


def test_inputs_that_do_not_belong_together_are_refused() -> None:
    rows, labels = classes(20, 0.1, 0)
    with pytest.raises(ValueError, match=r"same D, T >= 1"):
        linear_probe(rows, labels[:5], rows, labels)
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(rows, torch.zeros_like(labels), rows, labels)


def test_inference_mode_changes_nothing() -> None:
    expected = linear_probe(*classes(60, 0.8, 0), *classes(40, 0.8, 1))
    with torch.inference_mode():
        inside = (*classes(60, 0.8, 0), *classes(40, 0.8, 1))
        assert linear_probe(*inside) == expected
        assert linear_probe(inside[0].double(), inside[1], inside[2].double(), inside[3]) == expected
