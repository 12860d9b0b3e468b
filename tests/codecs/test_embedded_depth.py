"""depth_nano as it ships: small, with a card, and as good on scenes it never saw as the card says."""

from pathlib import Path
from typing import Any

import pytest
import torch

import vistok
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.depth import scene_depth_scores
from vistok.protocols import Span
from vistok.weights import weight_file


def test_the_file_is_small_and_its_card_has_licence_recipe_and_numbers():
    file = weight_file("embedded:depth_nano")
    assert file.stat().st_size <= 1e6
    card = Path(file.with_name("README.md")).read_text(encoding="utf-8")
    assert card.startswith("---\nlicense: apache-2.0\n")
    assert all(part in card for part in ("## Data and licences", "## Recipe", "## Numbers", "## Limits"))


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_depth_comes_back_within_eight_percent_from_more_than_six_codes_of_ten(split):
    scores = scene_depth_scores(vistok.codec("depth_nano", pretrained=True), seeds_of(split)[:40])
    assert scores.abs_rel <= 0.08 and scores.delta_1 >= 0.9
    assert scores.health.usage() >= 0.6
    assert scores.nearest is not None and scores.nearest >= 0.85


def test_it_speaks_auroras_vocabulary():
    codec: Any = vistok.codec("depth_nano", pretrained=True)
    scene = render(seeds_of("test")[0], 96)
    text = codec.to_text(codec.encode(torch.from_numpy(scene.depth)[None]))[0]
    (span,) = codec.parse(text)
    assert isinstance(span, Span) and len(span.codes) == 100 and text.count("<DEPTH_") == 102
    decoded = torch.nn.functional.interpolate(codec.decode(codec.tokens([span])), 96)[0, 0]
    nearest, behind = torch.from_numpy(scene.masks[0]), torch.from_numpy(scene.instances == 0)
    assert float(decoded[nearest].median()) > 0.8 and float(decoded[behind].median()) < 0.2, "near is not high"
