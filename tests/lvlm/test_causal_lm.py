"""A language model by name: the one inside a vision-language model answers as it does there."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from vistok.lvlm.causal_lm import language_of, load_causal_lm, load_words
from vistok.lvlm.load import load_lvlm
from vistok.lvlm.micro import make_tokenizer


def test_the_language_model_of_an_lvlm_says_what_the_lvlm_says() -> None:
    whole, _ = load_lvlm("micro_lvlm")
    alone = load_causal_lm("micro_lvlm")
    ids = torch.tensor([[1, 5, 9, 20, 31]])
    embeds = alone.get_input_embeddings()(ids)
    torch.testing.assert_close(alone(inputs_embeds=embeds).logits, whole(input_ids=ids).logits)
    assert alone.config.vocab_size == len(load_words("micro_lvlm"))


def test_a_folder_is_loaded_and_a_missing_one_named(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    made = LlamaForCausalLM(LlamaConfig(vocab_size=11, **sizes))  # type: ignore[arg-type]
    made.save_pretrained(tmp_path / "tiny")
    loaded = load_causal_lm(tmp_path / "tiny")
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_causal_lm(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="language_model and an output head"):
        language_of(loaded)


def test_a_folder_may_have_an_at_sign_in_its_path(tmp_path: Path) -> None:
    folder = tmp_path / "tiny@home"
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=60, **sizes)).save_pretrained(folder)  # type: ignore[arg-type]
    make_tokenizer().save_pretrained(folder)
    assert load_causal_lm(folder).config.vocab_size == 60
    assert load_words(folder).get_vocab() == make_tokenizer().get_vocab()
