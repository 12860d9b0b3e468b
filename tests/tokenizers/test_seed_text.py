"""SEED with captions: one space for pictures, codes and texts; words from a closed list; causal outputs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.train.seed_losses import contrastive_loss


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    built: Any = vistok.tokenizer("seed_nano", **vistok.info("tokenizer", "seed_nano").tiny)
    return built.eval()


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(3, 3, 96, 96, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_pictures_codes_and_captions_are_unit_vectors_of_one_space(model: Any, images: Tensor) -> None:
    tokens = model.encode(images)
    found = [model.embed_images(images), model.embed_codes(tokens), model.embed_texts(["a small red ring ."] * 3)]
    for rows in found:
        assert rows.shape == (3, 8) and rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=1), torch.ones(3))
    ids_alone = type(tokens)(spec=tokens.spec, indices=tokens.indices)
    torch.testing.assert_close(model.embed_codes(ids_alone), found[1])
    assert not torch.allclose(found[0][0], found[0][1])


@torch.no_grad()
def test_codes_are_embedded_through_what_is_rebuilt_of_the_last_query(model: Any, images: Tensor) -> None:
    rebuilt = model(images).queries
    expected = torch.nn.functional.normalize(model.vision_proj(rebuilt[:, -1]), dim=-1)
    torch.testing.assert_close(model.embed_codes(model.encode(images)), expected)


def test_only_the_last_query_and_the_first_word_count_and_the_temperature_learns(model: Any) -> None:
    outputs: list[Tensor] = []
    handle = model.Qformer.register_forward_hook(lambda *call: outputs.append(call[2]) or call[2].retain_grad())
    queries = torch.randn(3, 5, model.Qformer.width, generator=torch.Generator().manual_seed(0)).requires_grad_()
    captions = ["a small red ring .", "a large blue star .", "a small pink cross ."]
    try:
        loss = contrastive_loss(model.embed_queries(queries), model.embed_texts(captions), model.temp)
        loss.backward()
        (text,) = outputs
        assert queries.grad is not None and text.grad is not None
        assert (queries.grad.abs().sum((0, 2)) > 0).tolist() == [False] * 4 + [True]
        assert (text.grad.abs().sum((0, 2)) > 0).tolist() == [True] + [False] * (text.shape[1] - 1)
        assert {
            name for name, value in model.named_parameters()
            if value.grad is not None and value.grad.abs().sum() and not name.startswith("Qformer.")
        } == {"vision_proj.weight", "vision_proj.bias", "text_proj.weight", "text_proj.bias", "temp"}  # fmt: skip
    finally:
        handle.remove()
        model.zero_grad()


@torch.no_grad()
def test_a_caption_means_the_same_beside_a_longer_one(model: Any) -> None:
    short, long = "a small red ring .", "a large plain blue star with sign 7 , then a small red ring ."
    torch.testing.assert_close(model.embed_texts([short, long])[0], model.embed_texts([short])[0])
    ids, mask = model.word_ids([short, long])
    assert ids.shape == mask.shape == (2, 16) and mask.sum(1).tolist() == [6, 16]
    assert ids[0, 0] == ids[1, 0] and torch.equal(ids[0, 2:6], torch.cat([ids[1, 12:13], ids[1, 13:16]]))
    assert (ids[~mask] == 0).all() and (ids[mask] > 0).all()


def test_unknown_words_and_captions_that_are_too_long_are_named(model: Any) -> None:
    with pytest.raises(ValueError, match="expected words of a, with, .*; got elephant, grey in 'a grey elephant'"):
        model.word_ids(["a grey elephant"])
    with pytest.raises(ValueError, match="at most 95 words, got 96"):
        model.word_ids([" ".join(["a"] * 96)])
    with pytest.raises(ValueError, match="at least one caption"):
        model.word_ids([])


def test_settings_that_cannot_be_meant_are_refused() -> None:
    tiny = vistok.info("tokenizer", "seed_nano").tiny
    with pytest.raises(ValueError, match=r"expected words without spaces, each once.*got \['a', 'a'\]"):
        vistok.tokenizer("seed_nano", **{**tiny, "words": ["a", "a"]})
    with pytest.raises(ValueError, match="expected a temperature above 0, got 0"):
        vistok.tokenizer("seed_nano", **{**tiny, "temperature": 0})


def test_missing_tokens_are_named(model: Any, images: Tensor) -> None:
    tokens = model.encode(images)
    with pytest.raises(ValueError, match="expected all 4 tokens of each image, got N=3"):
        model.embed_codes(type(tokens)(spec=tokens.spec, indices=tokens.indices[:, :3]))


@torch.no_grad()
def test_a_saved_model_knows_its_words_and_reads_its_tower_from_the_embedded_file(
    model: Any, images: Tensor, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 200_000  # the tower alone has 4 MB
    again: Any = vistok.tokenizer("seed_nano", checkpoint=tmp_path)
    again.eval()
    text = ["a small red ring with sign 7 ."]
    assert torch.equal(again.embed_texts(text), model.embed_texts(text))
    assert torch.equal(again.embed_images(images), model.embed_images(images))
