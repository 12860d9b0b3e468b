"""Retrieval on scenes: pairs stay together whatever the batch, codes count from ids alone, bad models are named."""

from typing import Any

import pytest
import torch
from torch import Tensor

import vistok
from vistok.data.scenes.captions import WORDS, caption
from vistok.data.scenes.layout import make_layout
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.scene_retrieval import scene_retrieval
from vistok.tokens import TokenSpec, TokenTensor

SEEDS = seeds_of("validation")[:7]


class Oracle:
    """Knows each picture's caption by its mean colour, and counts words; its ids say only how many words there are."""

    codebook_sizes, image_size, name = (100,), (64, 64), "oracle"
    spec = TokenSpec("oracle", 1, (100,))

    def __init__(self) -> None:
        pictures = ((seed, torch.from_numpy(render(seed, 64).image) / 255) for seed in SEEDS)
        self.captions = {self.key(picture): caption(make_layout(seed)) for seed, picture in pictures}

    @staticmethod
    def key(image: Tensor) -> float:
        return round(float(image.double().mean()), 5)

    def embed_texts(self, texts: list[str]) -> Tensor:
        return torch.tensor([[text.split().count(word) for word in WORDS] for text in texts]).float()

    def embed_images(self, images: Tensor) -> Tensor:
        return self.embed_texts([self.captions[self.key(image)] for image in images])

    def encode(self, images: Tensor) -> TokenTensor:
        lengths = [len(self.captions[self.key(image)].split()) for image in images]
        return TokenTensor(spec=self.spec, indices=torch.tensor(lengths)[:, None], embeds=torch.ones(len(images), 1, 1))

    def embed_codes(self, tokens: TokenTensor) -> Tensor:
        assert tokens.embeds is None and tokens.indices is not None
        return torch.ones(len(tokens.indices), len(WORDS))


def test_pictures_find_their_captions_and_what_the_codes_lose_shows() -> None:
    found = scene_retrieval(Oracle(), SEEDS, batch=3)
    assert found.embeddings.image_to_text[1] == found.embeddings.text_to_image[1] == found.ceiling == 1
    # The codes of every picture are embedded alike: each looks most like the same caption.
    assert found.codes.image_to_text[1] == pytest.approx(1 / 7)
    report = found.report()
    assert report["kept"] == pytest.approx(1 / 7) and report["scenes"] == 7
    lengths = {len(caption(make_layout(seed)).split()) for seed in SEEDS}
    assert report["codebook"]["tokens"] == 7 and report["codebook"]["dead_codes"] == 100 - len(lengths)


def test_the_batch_does_not_matter() -> None:
    assert scene_retrieval(Oracle(), SEEDS, batch=7).report() == scene_retrieval(Oracle(), SEEDS, batch=2).report()


def test_a_model_of_the_toolkit_can_be_measured() -> None:
    torch.manual_seed(0)
    model: Any = vistok.tokenizer("seed_nano", **vistok.info("tokenizer", "seed_nano").tiny)
    found = scene_retrieval(model.eval(), SEEDS, ks=(7,))
    assert found.health.tokens == 7 * 4 and found.codes.image_to_text.keys() == {1, 7}
    assert found.embeddings.image_to_text[7] == found.codes.text_to_image[7] == 1


def test_models_that_embed_no_captions_are_named() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer with one codebook that embeds captions.*got vq_nano"):
        scene_retrieval(vistok.tokenizer("vq_nano"), SEEDS)
    with pytest.raises(ValueError, match="at least one scene"):
        scene_retrieval(Oracle(), [])
