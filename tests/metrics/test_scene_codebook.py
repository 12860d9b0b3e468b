"""Codes of scenes: what they name is found, codebook by codebook, of patches and of sequences; the rest is not."""

import pytest
import torch
from torch import Tensor

import vistok
from vistok.data.scenes.patch_truth import patch_truth
from vistok.data.scenes.render import render
from vistok.data.scenes.splits import seeds_of
from vistok.metrics.scene_codebook import picture_codebook, scene_codebook
from vistok.tokens import TokenSpec, TokenTensor

SIDE, GRID = 64, 8
SEEDS = seeds_of("test")[:20]


class Namer:
    """Two codebooks: the colour of each patch's thing, and the texture; as a grid behind a prefix, or as a sequence."""

    name = "namer"

    def __init__(self, *, sequence: bool = False) -> None:
        scenes = [render(seed, SIDE) for seed in SEEDS]
        truth = patch_truth(scenes, SIDE // GRID).classes
        keys = [float((torch.from_numpy(scene.image).permute(2, 0, 1).float() / 255).mean()) for scene in scenes]
        self.codes = dict(zip(keys, torch.stack([truth["color"], truth["texture"]], -1), strict=True))
        self.counts = dict(zip(keys, (len(scene.layout.things) for scene in scenes), strict=True))
        self.sequence = sequence
        self.spec = TokenSpec(self.name, 3, (7, 4), grid=(GRID, GRID), prefix=1)
        if sequence:
            self.spec = TokenSpec(self.name, 0, (40, 2), order="1d")

    def encode(self, images: Tensor) -> TokenTensor:
        keys = [float(image.mean()) for image in images]
        if self.sequence:
            counts = torch.tensor([self.counts[key] for key in keys])
            ids = torch.stack([counts, torch.zeros_like(counts)], 1)[..., None].repeat(1, 1, 2)
            ids[..., 1] = 0
            return TokenTensor(self.spec, indices=ids)
        ids = torch.stack([self.codes[key] for key in keys])
        ids = torch.cat([torch.zeros_like(ids[:, :1]), ids], 1)
        return TokenTensor(self.spec, embeds=torch.cat([ids, ids[..., :1]], -1).float(), indices=ids)


def test_each_codebook_tells_what_it_names_and_both_together_tell_both() -> None:
    found = scene_codebook(Namer(), SEEDS, side=SIDE, batch=16, merged=3)
    assert list(found.rows) == ["joint", "merged", "codebook 0", "codebook 1"] and found.unit == "patch"
    joint, merged, first, second = (row.codes for row in found.rows.values())
    truth = patch_truth([render(seed, SIDE) for seed in SEEDS], SIDE // GRID)
    assert joint.items == int(truth.shown.sum())
    assert first.labels["color"].plug_in == pytest.approx(first.labels["color"].classes)
    assert first.labels["color"].adjusted == pytest.approx(1) and second.labels["texture"].adjusted == pytest.approx(1)
    assert first.labels["texture"].above_shuffled < 0.25 and second.labels["color"].above_shuffled < 0.25
    assert joint.labels["color"].plug_in == pytest.approx(joint.labels["color"].classes)
    assert joint.labels["texture"].plug_in == pytest.approx(joint.labels["texture"].classes)
    assert joint.complexity > max(first.complexity, second.complexity) and merged.clusters == 3
    assert found.rows["joint"].k_means.clusters == joint.clusters


def test_tokens_in_a_sequence_are_asked_place_by_place_about_their_picture() -> None:
    found = scene_codebook(Namer(sequence=True), SEEDS, side=SIDE, batch=16)
    assert found.unit == "picture" and found.places == 2 and "merged" not in found.rows
    count = found.rows["codebook 0"].codes.labels["count"]
    assert count.plug_in == pytest.approx(count.classes / 2)  # one place of two tells it
    assert found.rows["codebook 0"].codes.items == len(SEEDS)
    silent = found.rows["codebook 1"].codes
    assert silent.complexity == 0 and silent.distortion == pytest.approx(1)


def test_pictures_without_labels_have_a_rate_and_a_distortion() -> None:
    model = vistok.tokenizer("ett_nano", pretrained=True).eval()
    images = [torch.from_numpy(render(seed, 96).image).permute(2, 0, 1) / 255 for seed in SEEDS[:2]]
    row = picture_codebook(model, images, merged=4).rows["joint"].codes
    assert row.items == 2 * 8 * 8 and not row.labels and row.complexity > 2 and 0 < row.distortion < 1


def test_continuous_tokens_no_scenes_and_sides_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="expected a tokenizer with codes, such as vq_nano, got kl_nano"):
        scene_codebook(vistok.tokenizer("kl_nano", pretrained=True), SEEDS[:1], side=SIDE)
    with pytest.raises(ValueError, match="at least one scene"):
        scene_codebook(Namer(), [])
    with pytest.raises(ValueError, match="at least one picture"):
        picture_codebook(Namer(), [])
    with pytest.raises(ValueError, match="expected a side that 8 rows of tokens divide.*got 70 pixels"):
        scene_codebook(_Blind(), SEEDS[:1], side=70)


class _Blind:
    """Always the same codes."""

    spec = TokenSpec("blind", 0, (2,), grid=(GRID, GRID))

    def encode(self, images: Tensor) -> TokenTensor:
        return TokenTensor(self.spec, indices=torch.zeros(len(images), GRID * GRID, dtype=torch.int64))
