"""What a mark costs and survives, on the real tokenizer; attacks are what they are called."""

import pytest
import torch

import vistok
from vistok.codecs.watermark import Watermark
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.watermark import ATTACKS, Marking, eight_bits, jpeg, measure_watermark
from vistok.train.watermark import codebook_of


@pytest.fixture(scope="module")
def tokenizer():
    return vistok.tokenizer("vq_nano", pretrained=True).eval()


@pytest.fixture(scope="module")
def images():
    pictures = torch.stack([torch.from_numpy(render(seed, 96).image.copy()) for seed in seeds_of("test")[:2]])
    return pictures.permute(0, 3, 1, 2).float() / 255


def test_a_mark_is_found_behind_encoding_again_costs_little_and_other_keys_see_none(tokenizer, images):
    mark = Watermark(codebook_of(tokenizer), "k")
    found = measure_watermark(tokenizer, images, mark, Marking("all", 144), keys=3, attacks=["re-encoded"])
    assert found.survival["re-encoded"].found == 1 and found.survival["re-encoded"].matches > 0.7
    assert found.survival["re-encoded"].places == 1
    assert 0.3 < found.changed < 0.7 and found.psnr_marked <= found.psnr_plain
    assert (found.trials, found.false_rate) == (6, 0.0)


def test_places_of_a_net_are_chosen_again_by_the_detector(tokenizer, images):
    mark = Watermark(codebook_of(tokenizer), "k")
    first = Marking("first", 20, lambda codes: -torch.arange(codes[0, ..., 0].numel()).expand(len(codes), -1).float())
    message = torch.tensor([1, 0])
    found = measure_watermark(tokenizer, images, mark, first, message=message, keys=1, attacks=["re-encoded"])
    assert found.survival["re-encoded"].places == 1
    assert found.survival["re-encoded"].symbols > 0.5


def test_attacks_are_what_they_are_called(images):
    assert torch.equal(eight_bits(images), images)
    half = torch.full((1, 3, 16, 16), 0.5001)
    assert torch.equal(eight_bits(half), torch.full_like(half, 128 / 255))
    errors = [float((jpeg(quality)(images) - images).square().mean()) for quality in (90, 75, 50)]
    assert 0 < errors[0] < errors[1] < errors[2] < 0.01
    assert list(ATTACKS) == ["re-encoded", "jpeg 90", "jpeg 75", "jpeg 50"]


def test_a_tokenizer_of_vectors_is_told(images):
    vectors = vistok.tokenizer("kl_nano", **vistok.info("tokenizer", "kl_nano").tiny).eval()
    with pytest.raises(ValueError, match="expected a tokenizer of one codebook"):
        codebook_of(vectors)
    with pytest.raises(ValueError, match="expected tokens of one codebook"):
        measure_watermark(vectors, images, Watermark(torch.eye(2), "k"), Marking("all", 4))
