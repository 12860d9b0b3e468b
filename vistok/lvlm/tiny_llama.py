"""A language model of a few hundred thousand weights over the words of scenes: what a vocabulary is tried out on."""

from dataclasses import dataclass
from typing import Any

from transformers import LlamaConfig, LlamaForCausalLM

from vistok.lvlm.micro import make_tokenizer


@dataclass(frozen=True)
class TinySettings:
    """Sizes of the model; tied: whether the head is the embedding."""

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_ratio: int = 3
    positions: int = 256
    tied: bool = False


def make_tiny_llama(settings: TinySettings) -> tuple[Any, Any]:
    """The untrained model, weights from torch's global generator, and its tokenizer of words."""
    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.width,
        intermediate_size=settings.mlp_ratio * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=settings.tied,
    )
    return LlamaForCausalLM(config), tokenizer
