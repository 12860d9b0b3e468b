"""Pre-norm blocks are torch's own layer with the same weights; what is masked is seen by none."""

import pytest
import torch
from torch import nn

from vistok.layers.transformer import Block, plain_attention, run_blocks


def block(seed: int = 0) -> Block:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Block(16, 4).eval()


def sequence(seed: int = 1) -> torch.Tensor:
    return torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(seed))


def test_a_block_is_torchs_own_with_the_same_weights() -> None:
    ours, x = block(), sequence()
    theirs = nn.TransformerEncoderLayer(16, 4, 64, 0.0, nn.functional.gelu, batch_first=True, norm_first=True).eval()
    names = {"ln_1": "norm1", "ln_2": "norm2", "attn": "self_attn", "mlp.c_fc": "linear1", "mlp.c_proj": "linear2"}
    state = {}
    for name, value in ours.state_dict().items():
        part = next(part for part in names if name.startswith(part))
        state[name.replace(part, names[part])] = value
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x))


def test_tokens_that_are_masked_change_no_other() -> None:
    blocks, x = [block(0), block(1)], sequence()
    valid = torch.tensor([[True] * 7, [True, False, True, True, False, True, False]])
    other = torch.where(valid[..., None], x, 100.0)
    with torch.no_grad():
        found = run_blocks(blocks, x, valid)
        torch.testing.assert_close(found[valid], run_blocks(blocks, other, valid)[valid])
        torch.testing.assert_close(found[1:, valid[1]], run_blocks(blocks, x[1:, valid[1]]))


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_the_fused_one(masked: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=generator)
    mask = (torch.rand(2, 1, 1, 7, generator=generator) < 0.6) if masked else None
    torch.testing.assert_close(
        plain_attention(q, k, v, mask), nn.functional.scaled_dot_product_attention(q, k, v, mask)
    )


def test_training_and_inference_give_the_same() -> None:
    x = sequence()
    with torch.no_grad():
        fused = block()(x)
    torch.testing.assert_close(block()(x.requires_grad_()).detach(), fused)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ValueError, match="heads that divide width=16, got heads=3"):
        Block(16, 3)


def test_plain_attention_drops_a_share_of_its_weights_and_scales_up_the_others() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 1, 40, 8), torch.randn(1, 1, 50, 8), torch.eye(50)[None, None]
    weights = plain_attention(q, k, v)
    dropped = plain_attention(q, k, v, dropout=0.25)
    kept = dropped > 0
    assert 0.2 < 1 - kept.float().mean() < 0.3
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75)
