"""Tiny language models and tokenizers of several kinds, without any download."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from vistok.lvlm.micro import MicroSettings, make_model, make_tokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
WORDS = 60


def byte_level() -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def sentence_piece() -> Any:
    """As Llama's: a space is a letter of its own, and one is put before the text."""
    letters = ["<pad>", "<s>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz(),<>_=.0123456789"]
    tokenizer = Tokenizer(
        models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[], unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


TOKENIZERS = {"byte_level": byte_level, "sentence_piece": sentence_piece, "words": make_tokenizer}


def word_tokenizer(extra: tuple[str, ...] = ()) -> Any:
    """WORDS words w0, w1, .. with the special ones among them, then `extra`."""
    words = [*SPECIAL.values(), *(f"w{place}" for place in range(WORDS - len(SPECIAL))), *extra]
    tokenizer = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL)


def llama(rows: int = WORDS, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    config = LlamaConfig(
        vocab_size=rows, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=tied, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(dtype).eval()


def llava(rows: int = WORDS) -> Any:
    settings = MicroSettings(
        side=32, patch=16, vision_width=16, vision_layers=1, vision_heads=2, text_width=16, text_layers=1,
        text_heads=2, text_kv_heads=1,
    )  # fmt: skip
    torch.manual_seed(0)
    model = make_model(settings)
    model.resize_token_embeddings(rows, mean_resizing=False)
    return model.eval()


MODELS = {
    "untied": llama,
    "tied": lambda rows=WORDS: llama(rows, tied=True),
    "bfloat16": lambda rows=WORDS: llama(rows, dtype=torch.bfloat16),
    "llava": llava,
}
