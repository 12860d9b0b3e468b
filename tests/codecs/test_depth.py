"""AURORA's depth tokens: polarity, range, resize, text, and spans that are none."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vistok
from vistok.protocols import ParseError, Span


def example(codec: Any, generator: torch.Generator) -> Tensor:
    return 3 + 9 * torch.rand(3, 30, 40, generator=generator) if codec.range.polarity == "near_low" else torch.rand(
        3, 1, 30, 40, generator=generator
    )  # fmt: skip


def tiny(**options: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec: Any = vistok.codec("depth", **{**vistok.info("codec", "depth").tiny, **options})
    return codec.eval()


def test_the_published_one_has_102_strings_to_a_map_out_of_130():
    with torch.device("meta"):
        codec: Any = vistok.codec("depth")
    assert codec.num_tokens == 100 and codec.grid == (10, 10)
    assert codec.strings[:3] == ("<DEPTH_START>", "<DEPTH_END>", "<DEPTH_0>")
    assert codec.strings[-1] == "<DEPTH_127>" and len(codec.strings) == 130


def test_text_is_100_codes_between_markers_for_the_small_one_too():
    codec: Any = vistok.codec("depth_nano")
    text = codec.to_text(codec.encode(torch.linspace(1, 9, 80 * 80).view(1, 80, 80)))[0]
    assert text.startswith("<DEPTH_START><DEPTH_") and text.endswith("><DEPTH_END>")
    assert text.count("<DEPTH_") == 102 and text.count(">") == 102 and " " not in text


def test_the_network_sees_what_the_published_pipeline_shows_it():
    """8-bit maps, Pillow's nearest neighbour, /255, (x - 0.5) / 0.5."""
    grey = torch.randint(0, 256, (1, 37, 53), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey[0, 0, 0], grey[0, 0, 1] = 0, 255
    resized = Image.fromarray(grey[0].numpy()).resize((24, 24), Image.Resampling.NEAREST)
    expected = (np.asarray(resized) / 255 - 0.5) / 0.5
    for normalize in ("none", "minmax"):
        seen = tiny(normalize=normalize).inputs(grey)
        assert np.abs(seen[0, 0].numpy() - expected).max() < 1e-6


def test_metres_are_turned_so_that_the_nearest_is_high():
    near, far = torch.tensor([[[2.0, 4.0], [8.0, 8.0]]]), torch.tensor([[[1.0, 3 / 7], [0.0, 0.0]]])
    metres = tiny(polarity="near_low", inversion="linear", image_size=8)
    assert torch.equal(metres.range.apply(near).values[:, 0], torch.tensor([[[1.0, 2 / 3], [0.0, 0.0]]]))
    reciprocal = tiny(polarity="near_low", image_size=8)
    torch.testing.assert_close(reciprocal.range.apply(near).values[:, 0], torch.tensor([[[1.0, 1 / 3], [0.0, 0.0]]]))
    assert torch.equal(tiny(image_size=8).range.apply(far).values[:, 0], far)


def test_decoded_maps_lie_in_0_to_1_at_the_side_of_the_network():
    codec = tiny()
    decoded = codec.decode(codec.encode(example(codec, torch.Generator().manual_seed(0))))
    assert decoded.shape == (3, 1, 24, 24) and float(decoded.min()) >= 0 and float(decoded.max()) <= 1


def test_a_constant_map_has_tokens_of_its_own_and_no_nan():
    codec = tiny()
    flat = codec.encode(torch.full((1, 9, 9), 0.7))
    assert torch.equal(flat.indices, codec.encode(torch.zeros(1, 9, 9)).indices)
    assert bool(codec.decode(flat).isfinite().all())


def test_encoding_moves_no_code_and_leaves_training_on():
    codec = tiny().train()
    before = {name: value.clone() for name, value in codec.state_dict().items()}
    codec.encode(torch.rand(2, 24, 24))
    assert codec.network.training
    assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())


SPAN = "<DEPTH_START>" + "<DEPTH_3>" * 9 + "<DEPTH_END>"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (SPAN.replace("<DEPTH_3>", "", 1), "expected 9 codes, got 8"),
        (SPAN.replace("<DEPTH_3>", "<DEPTH_3><DEPTH_3>", 1), "expected 9 codes, got 10"),
        (SPAN.replace("<DEPTH_3>", "<DEPTH_16>", 1), "got '<DEPTH_16>'"),
        (SPAN.replace("<DEPTH_3>", "<DEPTH_03>", 1), "got '<DEPTH_03>'"),
        (SPAN.removesuffix("<DEPTH_END>"), "got 9 and the end of the text"),
        ("<DEPTH_START>", "got 0 and the end of the text"),
        (SPAN.removeprefix("<DEPTH_START>"), "expected <DEPTH_START> before <DEPTH_3>"),
        ("<DEPTH_END>", "expected <DEPTH_START> before <DEPTH_END>"),
    ],
)
def test_what_is_no_map_says_why(text, reason):
    (error,) = tiny().parse(f"The map: {text}")
    assert isinstance(error, ParseError) and reason in error.reason
    assert (error.start, error.stop) == (9, 9 + len(text))


def test_a_span_inside_a_span_and_text_between_tokens():
    codec = tiny()
    error, span = codec.parse("<DEPTH_START><DEPTH_1>" + SPAN)
    assert isinstance(error, ParseError) and "another <DEPTH_START>" in error.reason and isinstance(span, Span)
    first, second = codec.parse(SPAN.replace("<DEPTH_3>", "<DEPTH_3> and ", 1))
    assert isinstance(first, ParseError) and "got 'and'" in first.reason
    assert isinstance(second, ParseError) and "expected <DEPTH_START>" in second.reason
    (spaced,) = codec.parse(SPAN.replace("><", "> \n<"))
    assert isinstance(spaced, Span) and spaced.codes == (3,) * 9


@pytest.mark.parametrize("prefix", ["", "module."])
def test_files_of_the_authors_load(tmp_path, prefix):
    codec = tiny()
    weights = {prefix + name.removeprefix("network."): value for name, value in codec.state_dict().items()}
    torch.save({"weights": weights, "epoch": 3}, tmp_path / "vae.pt")
    loaded: Any = vistok.codec("depth", **vistok.info("codec", "depth").tiny, checkpoint=tmp_path / "vae.pt")
    values = example(codec, torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval().encode(values).indices, codec.encode(values).indices)


def test_an_image_size_without_whole_patches_is_refused():
    with pytest.raises(ValueError, match="multiple of the network's downsample 8"):
        tiny(image_size=20)
