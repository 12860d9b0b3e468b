import pytest
import torch

from vistok.layers.feature_head import FeatureHead


def test_a_pruned_head_reads_the_kept_features_in_their_order() -> None:
    head = FeatureHead(4, 2)
    weight = head.weight.detach().clone()
    head.prune(torch.tensor([3, 1]), reset=False)
    features = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    expected = features[:, [3, 1]] @ weight[:, [3, 1]].T + head.bias
    torch.testing.assert_close(head(features), expected)


def test_pruning_starts_afresh_unless_told_not_to() -> None:
    head = FeatureHead(4, 2)
    torch.nn.init.zeros_(head.weight), torch.nn.init.zeros_(head.bias)
    head.prune(torch.tensor([3, 1]))
    assert bool((head.weight != 0).all()) and bool((head.bias < -4).all())


def test_groups_without_a_kept_feature_are_found() -> None:
    head = FeatureHead(6, 2)
    assert head.dead_groups([1, 3, 2]) == []
    head.prune(torch.tensor([0, 5]))
    assert head.dead_groups([1, 3, 2]) == [1]
    with pytest.raises(ValueError, match="groups of 6 features in all, got 5"):
        head.dead_groups([1, 3, 1])


@pytest.mark.parametrize("ids", [[0, 0], [4], [-1], []])
def test_ids_that_are_no_selection_are_refused(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="expected (distinct )?ids"):
        FeatureHead(4, 2).prune(torch.tensor(ids, dtype=torch.int64))


def test_a_head_is_pruned_once_and_has_features_and_classes() -> None:
    head = FeatureHead(4, 2)
    head.prune(torch.tensor([1]))
    with pytest.raises(ValueError, match="got one pruned to 1"):
        head.prune(torch.tensor([0]))
    with pytest.raises(ValueError, match="got 0 and 2"):
        FeatureHead(0, 2)
