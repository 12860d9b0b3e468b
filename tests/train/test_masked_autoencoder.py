"""Training by hidden patches: resumes to the bit, nothing leaks from what is hidden, timm reads what comes out."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from skimage import data

import vistok
from vistok.train.masked_autoencoder import MaskedAutoencoder, Trainer, Training, make_backbone, train

MODEL = {"patch_size": 16, "embed_dim": 32, "depth": 2, "num_heads": 2, "global_pool": "avg", "fc_norm": False}


@pytest.fixture
def training(tmp_path: Path) -> Training:
    pictures = tmp_path / "photos"
    pictures.mkdir()
    Image.fromarray(data.astronaut()).save(pictures / "astronaut.png")
    return Training(
        out=str(tmp_path / "run"), photos=[str(pictures)], model=MODEL, decoder_width=32, decoder_depth=1,
        decoder_heads=2, steps=5, batch=4, scales=[80], warmup=2, save_every=2, log_every=1,
    )  # fmt: skip


def test_a_run_that_was_interrupted_ends_with_the_same_bits(training: Training, tmp_path: Path) -> None:
    whole = Trainer(training)
    whole.run()
    halves = replace(training, out=str(tmp_path / "halves"))

    def stop_at_three(step: int, values: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(halves).run(stop_at_three)
    resumed = Trainer(halves)
    resumed.run()
    assert resumed.step == 5
    for mine, other in ((resumed.model, whole.model), (resumed.average, whole.average)):
        state = other.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in mine.state_dict().items())


def test_every_parameter_learns_but_for_none(training: Training) -> None:
    trainer = Trainer(training)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    last = trainer.run()
    assert [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])] == []
    assert last["psnr"] == pytest.approx(-10 * torch.log10(torch.tensor(last["loss"] * 0.25**2)).item())


def test_the_encoder_never_sees_hidden_pixels_and_the_loss_is_of_these_alone(training: Training) -> None:
    model = MaskedAutoencoder(make_backbone(training), 32, 1, 2)
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=draw)
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[0, :12] = hidden[1, 4:] = True
    seen: list[Any] = []
    hook = model.to_decoder.register_forward_hook(lambda _, args, __: seen.append(args[0].detach()))
    loss = model(images, hidden)
    other = images.clone()
    cells = other.unfold(2, 16, 16).unfold(3, 16, 16)  # a view [B, 3, 4, 4, 16, 16]
    cells[0, :, 1, 2] += 1  # patch 6 of the first image is hidden
    assert not torch.equal(model(other, hidden), loss)
    cells[0, :, 3, 3] += 1  # patch 15 is not
    model(other, hidden)
    hook.remove()
    assert seen[0].shape == (2, 1 + 4, 32)
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_the_decoder_puts_every_token_at_its_place(training: Training) -> None:
    model = MaskedAutoencoder(make_backbone(training), 32, 1, 2)
    table: list[torch.Tensor] = []
    tokens: list[torch.Tensor] = []
    model.blocks.register_forward_pre_hook(lambda _, args: table.append(args[0] - model.places))
    model.to_decoder.register_forward_hook(lambda _, __, out: tokens.append(out))
    hidden = torch.ones(2, 16, dtype=torch.bool)
    hidden[0, [3, 9]] = hidden[1, [0, 15]] = False
    with torch.no_grad():
        model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), hidden)
        expected = model.gap.expand(2, 17, -1).clone()
    for image, places in enumerate(((0, 4, 10), (0, 1, 16))):
        expected[image, list(places)] = tokens[0][image]
    torch.testing.assert_close(table[0], expected)


def test_timm_and_the_timm_tokenizer_read_the_model(training: Training) -> None:
    train(replace(training, steps=1))
    folder = Path(training.out) / "model"
    described = json.loads((folder / "config.json").read_text())
    assert described["model_args"]["patch_size"] == 16 and described["pretrained_cfg"]["mean"] == [0.5] * 3
    assert (folder / "model.safetensors").stat().st_size < 2.2 * sum(
        value.numel() for value in make_backbone(training).parameters()
    ) + 10_000
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mine: Any = vistok.tokenizer("timm_backbone", checkpoint=folder, norm=True)
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = net.forward_features((images - 0.5) / 0.25)[:, 1:]
        torch.testing.assert_close(mine.encode(images).embeds, theirs)
    assert mine.image_size == (64, 64)


def test_other_networks_and_optimizers_are_refused(training: Training) -> None:
    with pytest.raises(ValueError, match="a VisionTransformer of timm, resnet18 is a ResNet"):
        make_backbone(replace(training, architecture="resnet18", model={"img_size": None}))
    with pytest.raises(ValueError, match="optimizer adamw or muon, got 'sgd'"):
        Trainer(replace(training, optimizer="sgd"))


@pytest.mark.slow
def test_a_short_training_lowers_the_loss(training: Training) -> None:
    trainer = Trainer(replace(training, steps=80, batch=16, learning_rate=3e-3, warmup=10))
    losses: list[float] = []
    trainer.run(lambda step, values: losses.append(values["loss"]))
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
