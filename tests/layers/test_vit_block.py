"""Blocks with timm's names: what timm's own block gives, gated nets, causality and caches."""

from functools import partial

import pytest
import torch

from vistok.layers.key_value_cache import KeyValueCache
from vistok.layers.vit_block import BlockStack, SwiGlu, VitBlock


def test_it_is_the_block_of_timm_key_by_key_and_number_by_number() -> None:
    from timm.models.vision_transformer import Block

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    theirs = Block(24, num_heads=3, mlp_ratio=4, qkv_bias=True, norm_layer=norm)
    generator = torch.Generator().manual_seed(0)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    ours = VitBlock(24, heads=3)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 7, 24, generator=generator)
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(ours(x), expected)
    torch.testing.assert_close(ours(x).detach(), expected)


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(ValueError, match="heads that divide width=24, got heads=5"):
        VitBlock(24, heads=5)


@pytest.mark.parametrize(("width", "inner"), [(768, 2048), (1024, 2736), (128, 344), (192, 512)])
def test_the_gated_net_is_two_thirds_of_four_times_as_wide(width: int, inner: int) -> None:
    with torch.device("meta"):
        net = SwiGlu(width)
    assert net.w12.weight.shape == (2 * inner, width) and net.w3.weight.shape == (width, inner)


def test_the_first_half_is_the_gate() -> None:
    net = SwiGlu(64)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    gate, value = (x @ net.w12.weight.T + net.w12.bias).split(176, -1)
    torch.testing.assert_close(net(x), (gate * gate.sigmoid() * value) @ net.w3.weight.T + net.w3.bias)


@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_those_of_the_fused_forward_pass(causal: bool) -> None:
    torch.manual_seed(0)
    stack = BlockStack(64, 2, "swiglu", causal=causal)
    x = torch.randn(2, 5, 64)
    trained = stack(x)
    with torch.no_grad():
        torch.testing.assert_close(stack(x), trained.detach(), rtol=0, atol=1e-5)
    trained[:, 1].sum().backward()
    assert all(parameter.grad is not None for parameter in stack.parameters())


@torch.no_grad()
def test_full_attention_sees_everything_and_causal_only_what_came_before() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 6, 64)
    other = torch.cat([x[:, :4], -x[:, 4:]], 1)
    for causal in (False, True):
        stack = BlockStack(64, 1, causal=causal)
        same = (stack(x) == stack(other)).all(-1)[0]
        assert same.tolist() == ([True] * 4 + [False] * 2 if causal else [False] * 6)


@torch.no_grad()
def test_a_cache_of_each_layer_continues_the_sequence() -> None:
    torch.manual_seed(0)
    stack = BlockStack(128, 3, causal=True).double()
    x = torch.randn(2, 9, 128, dtype=torch.float64)
    cache = KeyValueCache(stack.depth)
    parts = [stack(part, cache) for part in x.split([4, 1, 3, 1], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), stack(x), rtol=0, atol=1e-12)


def test_widths_and_nets_that_there_are_not_are_refused() -> None:
    for width, depth, net in ((96, 1, "mlp"), (64, 0, "mlp"), (64, 1, "gelu")):
        with pytest.raises(ValueError, match="multiples of 64, depth >= 1 and ffn_layer one of mlp, swiglu"):
            BlockStack(width, depth, net)
