"""PaliGemma's masks: where the box is cut and put, what is read over and what is an error."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import vistok
from vistok.codecs.masks import tight_boxes
from vistok.protocols import ParseError, Span


def example(codec: Any, generator: torch.Generator) -> Tensor:
    masks = torch.zeros(3, 40, 60, dtype=torch.bool)
    masks[0, 5:30, 10:50] = True
    masks[1] = torch.rand(40, 60, generator=generator) > 0.5
    masks[2, 39, 59] = True
    return masks


def labelled(codec: Any) -> bool:
    return True


def tiny() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        codec: Any = vistok.codec("seg128", **vistok.info("codec", "seg128").tiny)
    return codec.eval()


def full() -> Any:
    """A codec whose decoder says "all of it" whatever the codes."""
    codec = tiny()
    last = codec.network.decoder[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.ones_(last.bias)
    return codec


def test_the_mask_of_a_whole_box_comes_back_as_the_box():
    codec = full()
    masks = torch.zeros(3, 341, 1023, dtype=torch.bool)
    masks[0, 31:300, 93:900] = True
    masks[1] = True
    masks[2, 10:12, 20:23] = True
    tokens = codec.encode(masks)
    assert torch.equal(codec.decode(tokens), masks)


def test_edges_are_put_where_the_reference_puts_them():
    """int(i / 1023 * side), worked out in numpy as its evaluator does."""
    codec = full()
    draw = torch.Generator().manual_seed(0)
    for height, width in ((480, 640), (333, 57)):
        places = torch.randint(0, 1024, (40, 2, 2), generator=draw).sort(dim=1).values.flatten(1)
        places = places[(places[:, 2] > places[:, 0]) & (places[:, 3] > places[:, 1])]
        ids = torch.cat((places, torch.full((len(places), codec.num_tokens - 4), 1024)), 1)
        spans = [Span(tuple(row), 0, 1) for row in ids.tolist()]
        decoded = codec.decode(codec.tokens(spans), size=(height, width))
        for mask, row in zip(decoded, places.numpy(), strict=True):
            y1, x1, y2, x2 = (int(v) for v in (row / 1023) * np.array([height, width, height, width]))
            expected = np.zeros((height, width), dtype=bool)
            expected[y1:y2, x1:x2] = True
            assert np.array_equal(mask.numpy(), expected)


def test_decoding_is_the_evaluators_resize_and_threshold():
    codec = tiny()
    ids = torch.randint(1024, 1040, (codec.num_tokens - 4,), generator=torch.Generator().manual_seed(1)).tolist()
    span = Span((100, 200, 900, 800, *ids), 0, 1)
    decoded = codec.decode(codec.tokens([span]), size=(50, 90))[0].numpy()
    with torch.no_grad():
        pattern = codec.network.decode((torch.tensor(ids) - 1024).view(1, *codec.grid))[0, 0] * 2 - 1
    y1, x1, y2, x2 = int(100 / 1023 * 50), int(200 / 1023 * 90), int(900 / 1023 * 50), int(800 / 1023 * 90)
    resized = Image.fromarray(pattern.numpy()).resize((x2 - x1, y2 - y1), resample=Image.Resampling.BILINEAR)
    sure = np.abs(np.asarray(resized)) > 1e-4
    assert np.array_equal(decoded[y1:y2, x1:x2][sure], (np.asarray(resized) > 0)[sure])
    decoded[y1:y2, x1:x2] = False
    assert not decoded.any()


def test_the_box_is_cut_at_rounded_edges_and_resized_with_antialiasing():
    codec = tiny()
    mask = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0))
    box = torch.tensor([[0.25, 0.125, 0.75, 0.875]])
    seen = codec._cut(mask[0], box[0], (64, 64))
    part = Image.fromarray(mask[0, 8:56, 16:48].numpy())
    expected = np.asarray(part.resize((16, 16), resample=Image.Resampling.BILINEAR))
    assert np.abs(seen[0].numpy() - expected).max() < 1e-5
    tokens = codec.encode(mask, box)
    assert torch.equal(tokens.indices[:, 4:] - 1024, codec.network.encode(seen[None]).flatten(1))
    assert tokens.indices[0, :4].tolist() == [128, 256, 895, 767]


def test_uint8_masks_count_up_to_255():
    codec = tiny()
    masks = example(codec, torch.Generator().manual_seed(0))
    assert torch.equal(codec.encode(masks).indices, codec.encode(masks.to(torch.uint8) * 255).indices)


def test_boxes_are_tight():
    masks = torch.zeros(2, 10, 20, dtype=torch.bool)
    masks[0, 2:5, 10:20] = True
    masks[1, 9, 0] = True
    expected = torch.tensor([[0.5, 0.2, 1.0, 0.5], [0.0, 0.9, 0.05, 1.0]])
    torch.testing.assert_close(tight_boxes(masks), expected)


SEG = "<seg000>" * 4
GOOD = "<loc0001><loc0002><loc0300><loc0400>" + SEG


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (GOOD[:-8], "got 7"),
        (GOOD + "<seg001>", "got 9"),
        ("<loc0001><loc0002><loc0300>" + SEG + "<seg000>", "got them mixed"),
        ("<loc0300><loc0002><loc0300><loc0400>" + SEG, "y1 < y2"),
        ("<loc0001><loc0400><loc0300><loc0400>" + SEG, "x1 < x2"),
        ("<loc0001><loc0002><loc0300><loc0400>" + SEG[8:] + "<seg016>", "got '<seg016>'"),
        ("<loc0001><loc0002><loc0300><loc1024>" + SEG, "got '<loc1024>'"),
    ],
)
def test_what_is_no_mask_says_why(text, reason):
    (error,) = tiny().parse(text)
    assert isinstance(error, ParseError) and reason in error.reason


def test_things_and_errors_stand_side_by_side():
    first, second, third = tiny().parse(f"{GOOD} red car ; <loc0001> ; {GOOD}")
    assert isinstance(first, Span) and first.label == "red car"
    assert isinstance(second, ParseError) and isinstance(third, Span)


def test_tokens_of_a_text_want_the_size_of_the_picture():
    codec = tiny()
    with pytest.raises(ValueError, match=r"pass size=\(H, W\)"):
        codec.decode(codec.tokens(codec.parse(GOOD)))


@pytest.mark.parametrize(
    ("masks", "message"),
    [
        (torch.zeros(1, 8, 8), "nothing in number 0"),
        (torch.full((1, 8, 8), 3.0), "values in 0..1"),
        (torch.ones(8, 8), r"expected masks \[N, H, W\]"),
    ],
)
def test_what_is_no_mask_is_refused(masks, message):
    with pytest.raises(ValueError, match=message):
        tiny().encode(masks)


def test_files_without_the_moving_averages_load(tmp_path):
    codec = tiny()
    tensors = {name.removeprefix("network."): value.numpy() for name, value in codec.state_dict().items()}
    np.savez(tmp_path / "vae.npz", **{name: value for name, value in tensors.items() if "_ema_" not in name})
    loaded: Any = vistok.codec("seg128", **vistok.info("codec", "seg128").tiny, checkpoint=tmp_path / "vae.npz")
    masks = example(codec, torch.Generator().manual_seed(0))
    assert torch.equal(loaded.eval().encode(masks).indices, codec.encode(masks).indices)
    assert torch.equal(loaded.network.codes._ema_w, loaded.network.codebook)


def test_everything_stays_on_the_device_of_what_is_given():
    codec, masks = tiny(), example(None, torch.Generator().manual_seed(0))
    boxes = tight_boxes(masks)
    with torch.device("meta"):  # where anything made without a device of its own goes
        tokens = codec.encode(masks, boxes)
        assert tokens.indices.device.type == codec.decode(tokens).device.type == "cpu"
