import math

import pytest
import torch

import vistok
from vistok.metrics.round_trip import evaluating, round_trip


def tiny(name):
    torch.manual_seed(0)
    return vistok.tokenizer(name, **vistok.info("tokenizer", name).tiny)


def test_bits_are_ids_times_log2_of_the_codebook():
    model, image = tiny("vq_nano"), torch.rand(3, 16, 22, generator=torch.Generator().manual_seed(0))
    with evaluating(model):
        trip = round_trip(model, image)
    assert trip.length == 4 * 6 and trip.image.shape == image.shape
    assert trip.bits == pytest.approx(24 * math.log2(math.prod(model.codebook_sizes)))
    assert trip.seconds > 0


def test_continuous_tokens_have_no_bits():
    model = tiny("kl_nano")
    with evaluating(model):
        assert round_trip(model, torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))).bits is None


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_comes_back_even_after_an_error(training):
    model = tiny("vq_nano").train(training)
    with pytest.raises(RuntimeError, match="stop"), evaluating(model):
        assert not model.training and torch.is_inference_mode_enabled()
        raise RuntimeError("stop")
    assert model.training is training and not torch.is_inference_mode_enabled()
