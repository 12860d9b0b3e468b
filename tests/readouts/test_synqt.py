"""SynQT: VQT at first, then queries that depend on the image through what earlier blocks were asked."""

import pytest
import torch
from torch import Tensor, nn

from vistok.readouts.synqt import SynQT
from vistok.readouts.vqt import VQT


@pytest.fixture
def synqt(vit: nn.Module) -> SynQT:
    torch.manual_seed(0)
    return SynQT(vit, 2, width=8, heads=2).eval()


def leave_the_start(synqt: SynQT) -> None:
    for part in synqt.synthesis:
        nn.init.normal_(part.up.weight, std=0.5)


def test_it_starts_as_vqt(synqt: SynQT, images: Tensor) -> None:
    plain = VQT(synqt.vit, 2).eval()
    plain.load_state_dict({"queries": synqt.queries})
    assert torch.equal(synqt(images).features, plain(images).features)


def test_queries_of_later_blocks_depend_on_the_image_and_on_earlier_queries(synqt: SynQT, images: Tensor) -> None:
    leave_the_start(synqt)
    before = synqt(images).queries.detach()
    read = [None, before[:, 0], before[:, 1]]
    asked = [synqt._ask(place, read[: place + 1][-1:] if place else []) for place in range(3)]
    assert asked[0].shape == (1, 2, 32) and asked[1].shape == (3, 2, 32)
    assert not torch.allclose(asked[1][0], asked[1][1])
    with torch.no_grad():
        synqt.queries[0] += 1
    after = synqt(images).queries
    assert all(not torch.allclose(before[:, layer], after[:, layer]) for layer in range(3))


def test_the_backbone_is_untouched_and_keeps_no_graph(synqt: SynQT, images: Tensor) -> None:
    leave_the_start(synqt)
    with torch.no_grad():
        expected = synqt.vit.forward_features(images)
    out = synqt.train()(images)
    out.features.sum().backward()
    assert torch.equal(out.backbone_features, expected)
    assert all(value.grad is None for value in synqt.vit.parameters())


def test_a_layer_is_worked_out_if_a_later_one_asks_with_it(synqt: SynQT, images: Tensor) -> None:
    leave_the_start(synqt)
    full, part = synqt(images), synqt(images, skip=[1])
    assert torch.equal(full.queries[:, 1:], part.queries[:, 1:])
    assert synqt.capture(images, skip=[1]).kept[0] is not None
    assert synqt.capture(images, skip=[3]).kept[2] is None


def test_widths_that_heads_do_not_divide_are_refused(vit: nn.Module) -> None:
    with pytest.raises(ValueError, match="multiples of 3 heads, got 8"):
        SynQT(vit, width=8, heads=3)
