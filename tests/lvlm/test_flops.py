"""Operations by the papers' formulas, against the numbers that the papers print, and exactly."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from vistok.lvlm import flops

LLAVA_7B = {"d": 4096, "m": 11008}


def test_transprunes_stages_give_the_teraflops_that_the_paper_prints() -> None:
    full = flops.staged([576] * 32, **LLAVA_7B)
    high = flops.staged([576] * 7 + [504] * 2 + [360] * 3 + [72] * 20, **LLAVA_7B)
    low = flops.staged([576] * 7 + [288] * 2 + [144] * 3 + [36] * 20, **LLAVA_7B)
    assert [round(value / 1e12, 3) for value in (full, high, low)] == [3.817, 1.557, 1.187]


def test_formulas_written_out() -> None:
    assert flops.plain_layer(3, 5, 7) == 4 * 3 * 25 + 2 * 9 * 5 + 2 * 3 * 5 * 7
    assert flops.gated_layer(3, 5, 7) == 4 * 3 * 25 + 2 * 9 * 5 + 3 * 3 * 5 * 7
    assert flops.next_layer_attention(4, 10, 6) == 240
    assert flops.decode(10, 2, 3, 5, 7) == 3 * (4 * 2 * 25 + 2 * 2 * 5 * 7 + 5 * 2 * (20 + 1))
    assert flops.staged_decode([10, 10, 10], 2, 5, 7) == flops.decode(10, 2, 3, 5, 7)
    assert flops.mean_tokens([8, 4, 0]) == 4
    assert {name: formula(2, 3, 4) for name, formula in flops.FORMULAS.items()} == {
        "divprune": 144,
        "todre": 144,
        "fastv": 144,
        "transprune": 168,
        "pdrop": 168,
    }


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (4, 1)])
@torch.no_grad()
def test_exact_counts_what_torch_counts(heads: int, kv_heads: int) -> None:
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        pad_token_id=0,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval()
    shape = flops.DecoderShape(3, 32, 40, heads, kv_heads, 32 // heads, vocab=50)
    with FlopCounterMode(display=False) as counter:
        out = model(torch.randint(0, 50, (1, 11)), logits_to_keep=1)
    assert counter.get_total_flops() == flops.exact_prefill([11] * 3, shape)
    with FlopCounterMode(display=False) as counter:
        model(torch.tensor([[3]]), past_key_values=out.past_key_values)
    assert counter.get_total_flops() == flops.exact_decode([11] * 3, 1, shape)


def test_the_cache_holds_keys_and_values() -> None:
    shape = flops.DecoderShape(2, 32, 40, 4, 2, 8)
    assert flops.cache_bytes([10, 6], shape, 2) == 2 * 16 * 2 * 8 * 2
