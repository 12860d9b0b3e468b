"""Training of MingTok: resumes to the bit, every part learns, teachers are any callables, latents end normal."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

import vistok
from vistok.config import deep_merge, read_yaml
from vistok.train.mingtok import Trainer, Training, train

TINY: dict[str, Any] = {
    "low_level_encoder": {"img_size": 64, "patch_size": 16, "depth": 1, "embed_dim": 64, "out_dim": 8},
    "semantic_decoder": {"in_dim": 8, "patch_size": 16, "embed_dim": 64, "decoder_depth": 1},
    "pixel_decoder": {"patch_size": 8, "embed_dim": 64, "decoder_depth": 1},
}


def colours(images: Tensor) -> Tensor:
    """A teacher of 5 channels on a grid of its own: colours and their products, coarse."""
    small = torch.nn.functional.adaptive_avg_pool2d(images, 5)
    return torch.cat([small, small[:, :2] * small[:, 1:]], 1)


def edges(images: Tensor) -> Tensor:
    """A teacher of 4 channels: differences of neighbours."""
    grey = images.mean(1, keepdim=True)
    both = torch.cat([grey.diff(dim=2, prepend=grey[:, :, :1]), grey.diff(dim=3, prepend=grey[:, :, :, :1])], 1)
    return torch.nn.functional.adaptive_avg_pool2d(torch.cat([both, both.abs()], 1), 6)


TEACHERS = {"latent": edges, "semantic": colours}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.fromarray(data.astronaut()).save(pictures / "astronaut.png")
    return Training(
        out=str(tmp_path / "run"), photos=[str(pictures)], settings=TINY, steps=5, batch=2, crop=64, scales=[80],
        optimizer="muon", warmup=2, save_every=2, log_every=1, statistics_batches=2,
    )  # fmt: skip


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, tmp_path: Path) -> None:
    whole = Trainer(training, TEACHERS)
    whole.run()
    halves = replace(training, out=str(tmp_path / "halves"))

    def stop_at_three(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(halves, TEACHERS).run(stop_at_three)
    resumed = Trainer(halves, TEACHERS)
    resumed.run()
    assert resumed.step == 5
    for mine, other in ((resumed.trained, whole.trained), (resumed.average, whole.average)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


def test_every_parameter_learns_and_all_losses_are_logged(training: Training) -> None:
    trainer = Trainer(replace(training, visible_weight=0.5, masked_share=1.0), TEACHERS)
    before = {name: value.clone() for name, value in trainer.trained.state_dict().items()}
    last = trainer.run()
    assert [name for name, value in trainer.trained.state_dict().items() if torch.equal(value, before[name])] == []
    assert {"loss", "pixels", "latent", "semantic", "grad_norm"} <= set(last)
    assert last["loss"] == pytest.approx(last["pixels"] + last["latent"] + last["semantic"], rel=1e-4)
    assert "psnr" not in last  # nothing was seen whole


def test_weights_scale_their_terms_and_without_teachers_pixels_are_left(training: Training) -> None:
    once = Trainer(replace(training, masked_share=1.0), TEACHERS).train_step()
    twice = Trainer(replace(training, masked_share=1.0, semantic=2.0, latent=0.5), TEACHERS).train_step()
    assert twice["semantic"] == pytest.approx(2 * once["semantic"], rel=1e-4)
    assert twice["latent"] == pytest.approx(once["latent"] / 2, rel=1e-4)
    alone = Trainer(replace(training, masked_share=0.0, perceptual={"l2": 3.0}))
    values = alone.train_step()
    assert alone.teachers == {} and alone.heads.latent is None
    assert values["loss"] == pytest.approx(values["pixels"] + values["l2"], rel=1e-4) and "psnr" in values


def test_teachers_see_only_images_whose_features_count(training: Training) -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return colours(images)

    def looked_at(**changes: Any) -> list[int]:
        seen.clear()
        trainer = Trainer(replace(training, batch=8, **changes), {"semantic": counting})
        seen.clear()
        trainer.train_step()
        return list(seen)

    assert looked_at(masked_share=0.0) == []
    assert looked_at(masked_share=1.0) == [8]
    assert looked_at(masked_share=0.0, visible_weight=0.1) == [8]
    (some,) = looked_at(masked_share=0.5)
    assert 0 < some < 8


def test_latents_are_aligned_with_a_teacher_where_nothing_is_hidden_and_only_if_one_is_named(
    training: Training,
) -> None:
    seen: list[int] = []

    def counting(images: Tensor) -> Tensor:
        seen.append(len(images))
        return colours(images)

    teachers = {**TEACHERS, "alignment": counting}
    trainer = Trainer(replace(training, batch=4, masked_share=0.0, visible_weight=0.1, cosine_margin=0.0), teachers)
    assert trainer.heads.alignment is not None
    project = trainer.heads.alignment.project.weight.detach().clone()
    last = trainer.run()
    assert not torch.equal(trainer.heads.alignment.project.weight, project)
    assert last["alignment"] > 0 and seen == [1] + [4] * 5
    terms = ("pixels", "latent", "semantic", "alignment")
    assert last["loss"] == pytest.approx(sum(last[name] for name in terms), rel=1e-4)
    hidden = Trainer(replace(training, masked_share=1.0), teachers).train_step()
    assert "alignment" not in hidden and "alignment" not in Trainer(training, TEACHERS).train_step()
    assert Trainer(training, TEACHERS).heads.alignment is None


def test_the_alignment_weighs_against_the_pixels_as_it_is_told(training: Training) -> None:
    whole = replace(training, masked_share=0.0, relation_margin=0.0, cosine_margin=0.0, bf16=False)
    once, twice = (
        Trainer(replace(whole, alignment=strength), {"alignment": colours}).train_step() for strength in (0.1, 0.2)
    )
    assert twice["alignment"] == pytest.approx(2 * once["alignment"], rel=1e-4)
    strict = Trainer(replace(whole, cosine_margin=1.9, relation_margin=1.9), {"alignment": colours}).train_step()
    assert strict["alignment"] < once["alignment"]


def test_the_shipped_model_has_latents_of_zero_mean_and_unit_variance(training: Training) -> None:
    train(replace(training, steps=1))
    model: Any = vistok.tokenizer("mingtok_nano", checkpoint=Path(training.out) / "model")
    images = Trainer(training).pictures.batch(10**6, 4)
    with torch.no_grad():
        latents = model.latents(images)
        z = torch.cat([latents.patches, latents.cls], 1)
        assert model.decode(model.encode(images)).shape == images.shape
    assert model.scaling_factor != 1.0
    assert float(z.std()) == pytest.approx(1, abs=0.3) and abs(float(z.mean())) < 0.3


def test_recipes_name_settings_that_there_are_and_the_twin_differs_by_its_teachers_only() -> None:
    recipe = read_yaml("train", "mingtok_nano")
    twin = read_yaml("train", "mingtok_nano_pixels")
    assert twin.pop("base") == "mingtok_nano"
    merged = deep_merge(recipe, twin)
    changed = {name for name in recipe if merged[name] != recipe[name]}
    assert changed == {"summary", "latent_teacher", "semantic_teacher"}
    settings = {name: value for name, value in recipe.items() if name not in ("method", "summary")}
    assert Training(out="", **settings).tokenizer == "mingtok_nano"


def test_an_optimizer_that_there_is_not_is_refused(training: Training) -> None:
    with pytest.raises(ValueError, match="optimizer adamw or muon, got 'sgd'"):
        Trainer(replace(training, optimizer="sgd"))


@pytest.mark.slow
def test_a_short_training_lowers_every_loss(training: Training) -> None:
    trainer = Trainer(
        replace(training, steps=120, batch=8, masked_share=0.5, warmup=10, learning_rate=3e-3, visible_weight=0.2),
        TEACHERS,
    )
    values: list[dict[str, float]] = []
    trainer.run(lambda step, found: values.append(found))
    for name in ("pixels", "latent", "semantic"):
        first, last = (sum(row[name] for row in part) for part in (values[:10], values[-10:]))
        assert last < 0.75 * first, name
