"""Linear probes on scenes: what tokens say is found at their own stage and level, and nothing is found in noise."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

import vistok
from vistok.data.scenes.layout import COLORS, SHAPES, TEXTURES
from vistok.data.scenes.patch_truth import CLASS_SIZES, patch_truth
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.scene_probe import SceneProbe, scene_probe
from vistok.tokens import TokenSpec, TokenTensor

SIDE, GRID = 64, 4
LEARN, HELD = seeds_of("validation")[:30], seeds_of("test")[:20]


class Oracle:
    """Its tokens tell every patch's colour, its semantic tokens the shape; the rest is noise, and a prefix of noise."""

    name = "oracle"
    cannot = frozenset({"decode"})

    def __init__(self) -> None:
        scenes = [render(seed, SIDE) for seed in (*LEARN, *HELD)]
        truth = patch_truth(scenes, SIDE // GRID)
        keys = [float((torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255).mean()) for scene in scenes]
        self.colors = dict(zip(keys, truth.classes["color"], strict=True))
        self.shapes = dict(zip(keys, truth.classes["shape"], strict=True))
        self.draw = torch.Generator().manual_seed(0)

    def encode(self, images: Tensor) -> TokenTensor:
        self.keys = [float(image.mean()) for image in images]
        spec = TokenSpec(self.name, 7 + 1, grid=(GRID, GRID), patch=SIDE // GRID, prefix=1)
        return TokenTensor(spec=spec, embeds=self.told(self.colors))

    def semantic(self, tokens: TokenTensor) -> TokenTensor:
        return replace(tokens, embeds=self.told(self.shapes))

    def told(self, classes: dict[float, Tensor]) -> Tensor:
        known = torch.stack([classes[key] for key in self.keys])
        one_hot = torch.nn.functional.one_hot(known, CLASS_SIZES["color"]).float()
        told = torch.cat([one_hot, torch.randn(*known.shape, 1, generator=self.draw)], -1)
        return torch.cat([torch.randn(len(told), 1, 8, generator=self.draw), told], 1)


@pytest.fixture(scope="module")
def found() -> SceneProbe:
    return scene_probe(Oracle(), LEARN, HELD, side=SIDE, batch=16)


def test_each_stage_is_read_for_what_its_patches_say_and_a_prefix_is_left_out(found: SceneProbe) -> None:
    patches = {row.attribute: row for row in found.rows if row.level == "patch"}
    assert patches["color"].accuracy["latent"] == patches["shape"].accuracy["semantic"] == 1
    for row, stage in ((patches["color"], "semantic"), (patches["texture"], "latent"), (patches["shape"], "latent")):
        assert row.accuracy[stage] < row.chance + 0.25
    assert found.psnr is None
    mean = found.mean("patch")
    assert mean.accuracy["latent"] == pytest.approx(sum(row.accuracy["latent"] for row in patches.values()) / 3)


def test_pictures_are_asked_for_their_nearest_thing_and_the_number_of_things(found: SceneProbe) -> None:
    images = {row.attribute: row for row in found.rows if row.level == "image"}
    assert list(images) == ["color", "shape", "texture", "count"]
    layouts = [render(seed, SIDE).layout for seed in HELD]
    for name, values in (("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES)):
        told = [getattr(layout.things[0], name) for layout in layouts]
        assert images[name].chance == pytest.approx(max(told.count(value) for value in values) / len(told))
    counts = [len(layout.things) for layout in layouts]
    assert images["count"].chance == pytest.approx(max(map(counts.count, counts)) / len(counts))
    assert images["color"].accuracy["latent"] > images["color"].accuracy["semantic"]


def test_tokenizers_and_scenes_that_cannot_be_probed_are_named() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer with continuous tokens.*got vq_nano"):
        scene_probe(vistok.tokenizer("vq_nano"), LEARN, HELD)
    with pytest.raises(ValueError, match="expected a side that 4 rows of tokens of oracle divide, got 66"):
        oracle = Oracle()
        oracle.told = lambda classes: torch.zeros(1, 17, 8)  # type: ignore[method-assign]
        scene_probe(oracle, LEARN[:1], HELD[:1], side=66)
    with pytest.raises(ValueError, match="expected scenes to fit on"):
        scene_probe(Oracle(), [], HELD)
