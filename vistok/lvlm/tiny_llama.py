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
    return untrained_llama(
        settings,
        len(tokenizer),
        pad=tokenizer.pad_token_id,
        begin=tokenizer.bos_token_id,
        end=tokenizer.eos_token_id,
    ), tokenizer


def untrained_llama(
    settings: TinySettings, words: int, *, pad: int | None = None, begin: int | None = None, end: int | None = None
) -> LlamaForCausalLM:
    """A model over `words` ids, weights from torch's global generator; pad, begin, end: ids that do so."""
    config = LlamaConfig(
        vocab_size=words,
        hidden_size=settings.width,
        intermediate_size=settings.mlp_ratio * settings.width,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.heads,
        max_position_embeddings=settings.positions,
        tie_word_embeddings=settings.tied,
        pad_token_id=pad,
        bos_token_id=begin,
        eos_token_id=end,
    )
    return LlamaForCausalLM(config)
