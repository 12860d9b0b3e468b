"""Training of KARL: resumes to the bit, learns to spend by complexity, both stages, the distribution of errors."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.tokenizers.karl import EPSILONS
from vistok.train.augment import augmented
from vistok.train.karl import Trainer, Training, train
from vistok.train.karl_losses import EpsilonSchedule, distillation_step
from vistok.train.karl_start import start_spatially
from vistok.train.karl_tuning import Tuning, balance

TINY: dict[str, Any] = {**vistok.info("tokenizer", "karl_nano").tiny, "max_latents": 12}
VQGAN: dict[str, Any] = {
    **vistok.info("tokenizer", "karl_small").tiny, "encoder_width": 32, "decoder_width": 32, "encoder_layers": 1,
}  # fmt: skip


@pytest.fixture
def training(tmp_path: Path) -> Training:
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.fromarray(data.astronaut()).save(pictures / "astronaut.png")
    return Training(
        out=str(tmp_path / "run"), photos=[str(pictures)], settings=TINY, steps=6, batch=2, crop=16, scales=[64],
        first_budgets=[1, 3, 8], budgets_per_step=2, spatial=True, optimizer="muon", warmup=2, save_every=3,
        log_every=1, second_start=0.2,
    )  # fmt: skip


def on_vqgan(training: Training, **changes: Any) -> Training:
    own: dict[str, Any] = {"tokenizer": "karl_small", "settings": VQGAN, "spatial": False, "optimizer": "adamw"}
    own["tuning"] = {"discriminator_steps": 1}
    return replace(training, **(own | changes))


def assert_same(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


@pytest.mark.parametrize("stage", ["pixels", "distillation", "tuning"])
def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, stage: str, tmp_path: Path) -> None:
    if stage != "pixels":
        training = on_vqgan(training, stage=stage)
    whole = Trainer(training)
    whole.run()
    halves = Trainer(replace(training, out=str(tmp_path / "halves")))

    def stop_at_four(step: int, values: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        halves.run(stop_at_four)
    resumed = Trainer(replace(training, out=str(tmp_path / "halves")))
    resumed.run()
    assert resumed.step == 6
    assert torch.equal(torch.as_tensor(resumed.first_budget()), torch.as_tensor(whole.first_budget()))
    assert_same(resumed.model.state_dict(), whole.model.state_dict())
    assert_same(dict(resumed.averaged().state_dict()), dict(whole.averaged().state_dict()))
    assert_same(resumed.schedule.state_dict(), whole.schedule.state_dict())


def test_the_distribution_of_errors_shifts_below_what_is_reached() -> None:
    schedule = EpsilonSchedule(EPSILONS)
    assert schedule.probability[:5].tolist() == pytest.approx([0.2] * 5) and schedule.probability[5:].sum() == 0
    schedule.update(torch.tensor([0.5, 0.025]))
    expected = torch.tensor([0.2, 0.2, 0.2, 0.198, 0.198])
    torch.testing.assert_close(schedule.probability[:5], expected / expected.sum())
    lowest = EpsilonSchedule([0.01, 0.1], at_most=0.0)
    assert lowest.draw(5).tolist() == pytest.approx([0.01] * 5)


def test_a_step_labels_the_slots_of_the_first_run_keep_and_the_others_halt(training: Training) -> None:
    model = Trainer(training).model
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    step = distillation_step(model, images, 3, 8, torch.zeros(2))
    first, second = step.terms
    assert step.budgets.tolist() == [3, 3] and "halt" not in first and {"keep", "halt"} <= set(second)
    logits = step.runs[1].halt_logits
    torch.testing.assert_close(second["halt"], torch.nn.functional.softplus(-logits[:, 3:]).mean())
    torch.testing.assert_close(second["keep"], torch.nn.functional.softplus(logits[:, :3]).mean())
    torch.testing.assert_close(step.loss, torch.stack([*first.values(), *second.values()]).sum())
    assert "halt" not in distillation_step(model, images, 8, 8, torch.zeros(2)).terms[1]


def test_budgets_that_differ_by_image_label_each_image_as_alone(training: Training) -> None:
    model = Trainer(training).model
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    budgets = torch.tensor([2, 6])
    together = distillation_step(model, images, budgets, 8, torch.zeros(2))
    alone = [distillation_step(model, images[i : i + 1], int(budgets[i]), 8, torch.zeros(1)) for i in range(2)]
    for row, step in enumerate(alone):
        torch.testing.assert_close(together.error[row], step.error[0])
        torch.testing.assert_close(together.runs[0].decoded[row], step.runs[0].decoded[0], rtol=0, atol=1e-5)
    for number in range(2):
        for name, value in together.terms[number].items():
            torch.testing.assert_close(value, (alone[0].terms[number][name] + alone[1].terms[number][name]) / 2)


def test_the_second_run_and_the_halting_loss_begin_gently(training: Training) -> None:
    trainer = Trainer(replace(training, steps=10))
    ramp = []
    for trainer.step in range(6):
        ramp.append(trainer.halting_ramp())
    assert ramp == pytest.approx([0, 0, 0.5, 1, 1, 1])


def test_the_base_is_frozen_in_distillation_and_trained_in_tuning(training: Training) -> None:
    for stage, frozen in (("distillation", True), ("tuning", False)):
        trainer = Trainer(on_vqgan(training, stage=stage, out=f"{training.out}-{stage}"))
        before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        trainer.run()
        same = [
            torch.equal(value, before[name])
            for name, value in trainer.model.state_dict().items()
            if name.startswith("base_tokenizer.")
        ]
        assert all(same) if frozen else not any(same)


def test_discriminators_take_eight_of_nine_steps_and_share_out_the_budgets(training: Training) -> None:
    model = Trainer(on_vqgan(training)).model
    tuning = Tuning(model, adversarial_start=20, later_start=100)
    assert [step for step in range(20, 40) if not tuning.is_discriminator_step(step)] == [26, 35]
    assert not any(tuning.is_discriminator_step(step) for step in range(20))
    assert [tuning.weight(step) for step in (19, 20, 100)] == [0.0, 0.2, 0.8]
    order = list(tuning.discriminators)
    places = [order.index(tuning.discriminator_of(slots)) for slots in (1, 32, 64, 256, 368)]
    assert places == [0, 0, 1, 7, 7]


def test_the_adversarial_term_is_balanced_at_the_last_layer() -> None:
    layer = torch.ones(2, requires_grad=True)
    found = balance((3 * layer).sum(), (0.5 * layer).sum(), layer)
    torch.testing.assert_close(found, torch.tensor(6.0), rtol=1e-3, atol=0)
    assert not found.requires_grad
    assert float(balance((3 * layer).sum(), (0 * layer).sum(), layer)) == pytest.approx(1e4)


def test_plain_pixels_cannot_be_tuned(training: Training) -> None:
    with pytest.raises(ValueError, match="expected a base with a decoder"):
        Trainer(replace(training, stage="tuning"))
    with pytest.raises(ValueError, match="expected stage distillation or tuning"):
        Trainer(replace(training, stage="both"))


def test_a_spatial_start_lays_the_slots_over_the_grid_and_lets_queries_be_keys(training: Training) -> None:
    model = Trainer(training).model
    width = model.latent_tokens.shape[1]
    side = model.encoder_positional_embedding.shape[1]
    table = model.encoder_positional_embedding.flatten(1).T
    nearest = torch.cdist(model.latent_tokens, table)
    assert nearest.amin(1).max() < 1e-2
    cells = nearest.argmin(1)
    assert len(set(cells.tolist())) == model.max_latents
    assert len({(int(c) // side >= side // 2, int(c) % side >= side // 2) for c in cells[:4]}) == 4
    weight = model.encoder.transformer[0].attn.in_proj_weight
    assert torch.equal(weight[:width], weight[width : 2 * width]) and not torch.equal(weight[:width], weight[-width:])
    assert len(model.rec_loss_embeddings.unique(dim=0)) == len(model.epsilons)
    with pytest.raises(ValueError, match="at most 16 slots"):
        start_spatially(vistok.tokenizer("karl_nano", **{**TINY, "max_latents": 17}))


def test_augmentation_is_seeded_and_keeps_images_in_range() -> None:
    images = torch.rand(8, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(3)
    first = augmented(images, 0.2)
    torch.manual_seed(3)
    assert torch.equal(augmented(images, 0.2), first)
    assert first.shape == images.shape and first.min() >= 0 and first.max() <= 1 and not torch.equal(first, images)
    plain = augmented(images, 0.0)
    torch.testing.assert_close(plain.sort(dim=3).values.sum((2, 3)), images.sum((2, 3)))


def test_a_trained_model_is_a_checkpoint_of_its_name(training: Training) -> None:
    train(training)
    model: Any = vistok.tokenizer("karl_nano", checkpoint=Path(training.out) / "model")
    assert model.budget == TINY["budget"]
    assert model.encode(torch.rand(1, 3, 16, 16)).embeds.isfinite().all()
