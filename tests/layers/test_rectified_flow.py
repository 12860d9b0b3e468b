import math

import pytest
import torch

from vistok.layers.rectified_flow import RectifiedFlowHead, TimeEmbedding


def test_the_published_head_has_its_published_size() -> None:
    with torch.device("meta"):
        head = RectifiedFlowHead(32, 3072)
    assert sum(value.numel() for value in head.state_dict().values()) == 1_284_876_320
    assert head.net.res_blocks[0].mlp.w12.weight.shape == (2 * 8192, 3072)  # type: ignore[union-attr,index]


def test_a_new_head_predicts_no_motion_and_learns_in_every_part() -> None:
    torch.manual_seed(0)
    head = RectifiedFlowHead(5, 7, width=16, depth=2)
    x, t, condition = torch.randn(4, 5), torch.rand(4), torch.randn(4, 7)
    assert head(x, t, condition).abs().max() == 0
    optimizer = torch.optim.SGD(head.parameters(), 0.1)
    before = {name: value.clone() for name, value in head.state_dict().items()}
    for _ in range(3):  # zero layers let gradients through from the second step on
        optimizer.zero_grad()
        (head(x, t, condition) - x).square().sum().backward()
        optimizer.step()
    assert [name for name, value in head.state_dict().items() if torch.equal(value, before[name])] == []


def test_times_become_cosines_then_sines_of_a_thousand_t() -> None:
    embedding = TimeEmbedding(256)
    with torch.no_grad():
        for layer in (embedding.mlp[0], embedding.mlp[2]):
            layer.weight.copy_(torch.eye(256))  # type: ignore[union-attr,operator]
        found = embedding(torch.tensor([0.25]))[0]
    angles = [250 * 10000 ** (-k / 128) for k in range(128)]
    expected = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
    torch.testing.assert_close(found, torch.nn.functional.silu(expected), rtol=0, atol=1e-4)


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="sizes >= 1"):
        RectifiedFlowHead(0, 4, width=8, depth=1)
