"""Rows of an embedding as pictures of their tokens: components by hand, a frozen model, new rows that look alike."""

from typing import Any

import pytest
import torch

from vistok.lvlm.glyph_rows import freeze_glyphs, glyph_pictures, glyph_table, glyphs, token_strings
from vistok.lvlm.micro import make_tokenizer
from vistok.lvlm.tiny_llama import TinySettings, make_tiny_llama


def test_rows_are_the_principal_components_of_the_pictures_with_length_one() -> None:
    strings = ["circle", "circles", "square", "x", "7"]
    table = glyph_table(strings, 8)
    assert table.shape == (5, 8) and torch.allclose(table.norm(dim=1), torch.ones(5))
    assert bool((table[:, 4:] == 0).all())  # five pictures about their mean have four components
    pictures = glyph_pictures(strings).flatten(1)
    centred = torch.nn.functional.normalize(pictures - pictures.mean(0), dim=1)
    assert torch.allclose(table @ table.T, centred @ centred.T, atol=1e-5)
    assert float(table[0] @ table[1]) > 0.5 > float(table[0] @ table[2])
    assert torch.equal(table, glyph_table(strings, 8))


def test_fewer_columns_are_the_first_components() -> None:
    strings = ["red", "green", "blue", "ring", "star", "sign"]
    pictures = glyph_pictures(strings).flatten(1).double()
    pictures = pictures - pictures.mean(0)
    first = torch.linalg.svd(pictures, full_matrices=False)[0][:, 0]
    own = glyph_table(strings, 1)[:, 0].double()
    assert torch.equal(own.abs(), torch.ones(6).double()) and (own @ first.sign()).abs() == 6


def test_long_strings_are_squeezed_and_unknown_characters_look_alike() -> None:
    pictures = glyph_pictures(["i" * 60, "é", "ü", "a"], side=16)
    assert pictures.shape == (4, 16, 32) and float(pictures[0, :, -4:].max()) > 0
    assert torch.equal(pictures[1], pictures[2]) and not torch.equal(pictures[1], pictures[3])
    with pytest.raises(ValueError, match="at least one string, got 'word'"):
        glyph_pictures("word")
    with pytest.raises(ValueError, match="width of at least 1, got 0"):
        glyph_table(["a"], 0)


def test_every_id_has_a_string() -> None:
    words = make_tokenizer()
    strings = token_strings(words)
    assert len(strings) == len(words) and strings[words.get_vocab()["circle"]] == "circle"
    assert all(strings)


@pytest.mark.parametrize("tied", [False, True])
def test_a_frozen_table_stays_while_the_rest_learns(tied: bool) -> None:
    torch.manual_seed(0)
    model, words = make_tiny_llama(TinySettings(width=32, layers=1, tied=tied))
    head = model.get_output_embeddings().weight.detach().clone()
    rows = freeze_glyphs(model, words)
    embedding: Any = model.get_input_embeddings()
    assert torch.equal(embedding.weight, rows) and not embedding.weight.requires_grad
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert model.get_output_embeddings().weight is not embedding.weight
    # As long as the rows before, on average, and as near one another as their pictures.
    table = glyph_table(token_strings(words), 32)
    assert torch.allclose(torch.nn.functional.normalize(rows, dim=1), table, atol=1e-5)
    ids = words("a small red circle", return_tensors="pt").input_ids
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], 1e-2)
    first = last = 0.0
    for step in range(10):
        loss = model(input_ids=ids, labels=ids).loss
        first, last = (loss.item(), loss.item()) if step == 0 else (first, loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert last < first / 2 and torch.equal(embedding.weight, rows)


def test_new_rows_lie_to_one_another_as_their_pictures_do() -> None:
    old = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) + 3
    strings = ["star 1", "star 7", "ring"]
    rows = glyphs(strings)(old, 3, torch.Generator())
    apart = rows - old.mean(0)
    assert torch.allclose(apart.norm(dim=1), (old - old.mean(0)).norm(dim=1).mean().expand(3), atol=1e-4)
    table = glyph_table(strings, 16)
    assert torch.allclose(
        torch.nn.functional.cosine_similarity(apart[0], apart[1], dim=0), table[0] @ table[1], atol=1e-4
    )
    with pytest.raises(ValueError, match="one string for each of 4 new rows, got 3"):
        glyphs(strings)(old, 4, torch.Generator())


def test_more_tokens_than_rows_are_refused() -> None:
    model, words = make_tiny_llama(TinySettings(width=32, layers=1))
    words.add_tokens(["more", "and more"])
    with pytest.raises(ValueError, match="a row for each of 89 tokens, got 87 rows"):
        freeze_glyphs(model, words)
