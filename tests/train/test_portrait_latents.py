"""Portraits behind a tokenizer: what is kept in the file is what the tokenizer says, and it is asked once."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vistok
from vistok.data.scenes.portraits import portrait
from vistok.data.scenes.render import background_of, render
from vistok.data.scenes.splits import seeds_of
from vistok.tokenizers.mingtok import MingTok
from vistok.train.portrait_latents import SHOWN, encode_portraits, kept_portraits

SIDE = 64


@pytest.fixture(scope="module")
def tokenizer() -> MingTok:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("mingtok_nano", **vistok.info("tokenizer", "mingtok_nano").tiny)
    built: MingTok = model.eval()
    return built


def test_latents_semantic_tokens_and_attributes_are_those_of_the_rendered_portraits(tokenizer: MingTok) -> None:
    found = encode_portraits(tokenizer, "test", 3, SIDE)
    layouts = [portrait(seed) for seed in seeds_of("test")[:3]]
    pictures = np.stack([render(layout, SIDE).image for layout in layouts])
    images = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        tokens = tokenizer.encode(images)
        latents, semantic = found.tokens(tokenizer, torch.tensor([2, 0]))
        assert latents.spec == tokens.spec and tokens.embeds is not None and latents.embeds is not None
        torch.testing.assert_close(latents.embeds, tokens.embeds[[2, 0]])
        expected = tokenizer.semantic(tokens).embeds
        assert expected is not None and semantic.embeds is not None
        torch.testing.assert_close(semantic.embeds, expected[[2, 0]], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(found.reconstructions(tokenizer, 9), tokenizer.decode(tokens), rtol=0, atol=5e-3)
    for row, layout in enumerate(layouts):
        shown = {name: SHOWN[name][int(values[row])] for name, values in found.attributes.items()}
        thing = layout.things[0]
        assert shown == {
            "size": thing.size, "texture": thing.texture, "color": thing.color, "shape": thing.shape,
            "background": background_of(layout),
        }  # fmt: skip


def test_a_file_is_read_again_only_if_it_holds_just_these(tokenizer: MingTok, tmp_path: Path) -> None:
    file = tmp_path / "test.safetensors"
    first = kept_portraits(file, tokenizer, "test", 2, SIDE, "a")
    written = file.stat().st_mtime_ns
    again = kept_portraits(file, tokenizer, "test", 2, SIDE, "a")
    assert file.stat().st_mtime_ns == written and torch.equal(again.semantic, first.semantic)
    assert all(torch.equal(values, first.attributes[name]) for name, values in again.attributes.items())
    assert len(kept_portraits(file, tokenizer, "test", 3, SIDE, "a")) == 3
    written = file.stat().st_mtime_ns
    kept_portraits(file, tokenizer, "test", 3, SIDE, "b")
    assert file.stat().st_mtime_ns != written


def test_a_side_that_the_patch_does_not_divide_is_named(tokenizer: MingTok) -> None:
    with pytest.raises(ValueError, match="multiple of the patch 8, got 68"):
        encode_portraits(tokenizer, "test", 1, 68)
