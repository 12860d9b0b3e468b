"""A file of new rows turns the base model into the trained one, to the bit."""

import pytest
import torch
from safetensors.torch import save_file

from vistok.lvlm import row_starts
from vistok.lvlm.new_rows import attach, detach, matrices
from vistok.lvlm.row_files import export_rows, merge_rows
from vistok.lvlm.token_families import depth
from vistok.lvlm.vocabulary import TokenFamily

from .vocabulary_fixtures import MODELS, WORDS, llama, word_tokenizer

ROWS = TokenFamily("rows", ("<0>", "<1>", "<a>", "<b>", "<s>e"), ("<a>",), ("<b>",), row_end="<s>e", size_end="w3")


@pytest.mark.parametrize("kind", MODELS)
def test_base_and_file_are_the_model_that_was_exported(kind, tmp_path):
    tokenizer, model = word_tokenizer(), MODELS[kind]()
    attachment = attach(tokenizer, model, [ROWS, depth(4)], start=row_starts.normal())
    export_rows(tmp_path / "rows.safetensors", model, attachment)
    other_tokenizer, other = word_tokenizer(), MODELS[kind]()
    merged = merge_rows(tmp_path / "rows.safetensors", other_tokenizer, other)
    assert merged.families == attachment.families and merged.maps == attachment.maps
    assert other_tokenizer.get_vocab() == tokenizer.get_vocab()
    ours, theirs = model.state_dict(), other.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items() if "embed" in name or "head" in name)


def test_ids_may_differ_where_the_file_is_read(tmp_path):
    model = llama()
    attachment = attach(word_tokenizer(), model, [ROWS], start=row_starts.normal())
    export_rows(tmp_path / "rows.safetensors", model, attachment)
    tokenizer, other = word_tokenizer(("one", "two")), llama(WORDS + 2)
    merged = merge_rows(tmp_path / "rows.safetensors", tokenizer, other)
    assert merged.maps["rows"].codes == range(WORDS + 2, WORDS + 4)
    for name, matrix in matrices(other).items():
        assert torch.equal(matrix[merged.ids["<1>"]], matrices(model)[name][attachment.ids["<1>"]])


def test_rows_go_onto_strings_that_are_there_already(tmp_path):
    model = llama()
    attachment = attach(word_tokenizer(), model, [ROWS], start=row_starts.normal())
    export_rows(tmp_path / "rows.safetensors", model, attachment)
    tokenizer, other = word_tokenizer(), llama()
    attach(tokenizer, other, [ROWS])
    before = {name: matrix.detach().clone() for name, matrix in matrices(other).items()}
    merged = merge_rows(tmp_path / "rows.safetensors", tokenizer, other)
    assert torch.equal(matrices(other)["head"][WORDS : WORDS + 5], matrices(model)["head"][WORDS : WORDS + 5])
    assert merged.new_strings == ROWS.strings
    detach(tokenizer, other, merged)
    assert all(torch.equal(matrix, before[name]) for name, matrix in matrices(other).items())


@pytest.mark.parametrize("spare", [0, 30])
def test_detaching_puts_back_rows_of_a_family_that_was_there_beside_one_that_was_not(spare, tmp_path):
    model = llama()
    attachment = attach(word_tokenizer(), model, [depth(4), ROWS], start=row_starts.normal())
    export_rows(tmp_path / "rows.safetensors", model, attachment)
    tokenizer, other = word_tokenizer(), llama(WORDS + spare)
    attach(tokenizer, other, [ROWS], pad_to_multiple_of=1)
    known = tokenizer.get_vocab()
    before = {name: matrix.detach().clone() for name, matrix in matrices(other).items()}
    merged = merge_rows(tmp_path / "rows.safetensors", tokenizer, other)
    assert set(merged.new_strings) == set(attachment.new_strings)
    for string, number in zip(merged.new_strings, merged.new, strict=True):
        assert torch.equal(matrices(other)["head"][number], matrices(model)["head"][attachment.ids[string]])
    detach(tokenizer, other, merged)
    assert tokenizer.get_vocab() == known
    assert all(torch.equal(matrix, before[name]) for name, matrix in matrices(other).items())


def test_a_file_that_does_not_fit_changes_nothing(tmp_path):
    model = llama()
    file = tmp_path / "rows.safetensors"
    export_rows(file, model, attach(word_tokenizer(), model, [ROWS]))
    tokenizer, tied = word_tokenizer(), llama(tied=True)
    with pytest.raises(ValueError, match="expected rows for embedding as in the model, got embedding, head"):
        merge_rows(file, tokenizer, tied)
    assert len(tokenizer) == WORDS and len(matrices(tied)["embedding"]) == WORDS
    save_file({"embedding": torch.zeros(2, 3)}, tmp_path / "plain.safetensors")
    with pytest.raises(ValueError, match=r"plain\.safetensors: expected new rows of format"):
        merge_rows(tmp_path / "plain.safetensors", tokenizer, llama())
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"broken\.safetensors: expected a safetensors file"):
        merge_rows(tmp_path / "broken.safetensors", tokenizer, llama())
    with pytest.raises(FileNotFoundError, match="export_rows"):
        merge_rows(tmp_path / "absent.safetensors", tokenizer, llama())


def test_a_file_for_another_width_says_both(tmp_path):
    model = llama()
    attachment = attach(word_tokenizer(), model, [ROWS])
    file = tmp_path / "rows.safetensors"
    export_rows(file, model, attachment)
    from transformers import LlamaConfig, LlamaForCausalLM

    wide = LlamaForCausalLM(
        LlamaConfig(vocab_size=WORDS, hidden_size=24, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    with pytest.raises(ValueError, match=r"embedding rows \[24\] as the model's, got \[16\]"):
        merge_rows(file, word_tokenizer(), wide)


def test_nothing_new_is_nothing_to_export(tmp_path):
    tokenizer, model = word_tokenizer(), llama()
    attach(tokenizer, model, [ROWS])
    with pytest.raises(ValueError, match="new rows"):
        export_rows(tmp_path / "rows.safetensors", model, attach(tokenizer, model, [ROWS]))
