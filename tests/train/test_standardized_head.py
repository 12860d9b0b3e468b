import pytest
import torch

from vistok.layers.feature_head import FeatureHead
from vistok.train.classifier_fit import Recipe, fit
from vistok.train.standardized_head import standardized


@pytest.fixture
def features() -> torch.Tensor:
    draw = torch.Generator().manual_seed(0)
    found = 5 + 0.01 * torch.randn(40, 6, generator=draw)
    found[:, 3] = 2.0
    return found


@pytest.mark.parametrize("ids", [None, [4, 0, 3]])
def test_outside_the_head_is_the_same_function_of_plain_features(features: torch.Tensor, ids: list[int] | None) -> None:
    head = FeatureHead(6, 3)
    if ids is not None:
        head.prune(torch.tensor(ids))
    with standardized(head, features):
        assert torch.equal(head(features), torch.zeros(40, 3))
        with torch.no_grad():
            head.weight.normal_(generator=torch.Generator().manual_seed(1))
            head.bias.fill_(0.5)
        inside = head(features).detach()
        constant = torch.tensor([3]) if ids is None else torch.tensor([2])
        assert torch.allclose(inside.mean(0), torch.full((3,), 0.5), atol=1e-3)
        assert head.weight[:, constant].abs().min() > 0  # and yet a feature that does not vary says nothing
    torch.testing.assert_close(head(features), inside, atol=2e-3, rtol=0)


def test_few_steps_tell_apart_what_differs_little(features: torch.Tensor) -> None:
    labels = (features[:, 0] > features[:, 0].median()).long()
    recipe = Recipe(1.0, 0.0, batch=20, epochs=10, warm_epochs=1)

    def accuracy(head: FeatureHead) -> float:
        return float((head(features).argmax(1) == labels).double().mean())

    torch.manual_seed(0)
    plain, better = FeatureHead(6, 2), FeatureHead(6, 2)
    fit(plain, lambda rows: plain(features[rows]), labels, recipe, 0)
    with standardized(better, features):
        fit(better, lambda rows: better(features[rows]), labels, recipe, 0)
    assert accuracy(better) >= 0.9 > accuracy(plain)


def test_the_head_is_itself_again_after_an_error(features: torch.Tensor) -> None:
    head = FeatureHead(6, 2)
    with pytest.raises(KeyboardInterrupt), standardized(head, features):
        raise KeyboardInterrupt
    assert not head._forward_pre_hooks
